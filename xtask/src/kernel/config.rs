//! Kernel options: what was asked for, against what Kconfig made of it.
//!
//! Kconfig drops a request whose dependency is missing without a word. We fail instead.

use std::collections::HashMap;

use anyhow::{Result, bail};

/// Fails naming every option of `fragment` that `final_config` does not have.
pub(super) fn verify(fragment: &str, final_config: &str) -> Result<()> {
    let given: HashMap<&str, &str> = assignments(final_config).collect();
    let fallen: Vec<String> = assignments(fragment)
        .filter(|&(name, value)| given.get(name).copied().unwrap_or("n") != value)
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if !fallen.is_empty() {
        bail!(
            "the kernel's final configuration lacks {}; a dependency is missing from the fragment, \
             or this source does not know the option",
            fallen.join(", ")
        );
    }
    Ok(())
}

/// `NAME=value` lines; in a final configuration an option that is off is a comment.
fn assignments(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| line.starts_with("CONFIG_")).filter_map(|line| line.split_once('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINAL: &str = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_TEXT=\"a=b\"\nCONFIG_N=64\n";

    #[test]
    fn fragment_that_is_met_passes() {
        verify(
            "# why\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=n\nCONFIG_TEXT=\"a=b\"\nCONFIG_N=64\n",
            FINAL,
        )
        .unwrap();
    }

    #[test]
    fn every_option_that_fell_out_is_named() {
        let fragment = "CONFIG_A=n\nCONFIG_B=y\nCONFIG_C=y\nCONFIG_N=8\nCONFIG_TEXT=\"a=b\"\n";
        let message = verify(fragment, FINAL).unwrap_err().to_string();
        assert!(message.contains("CONFIG_A=n, CONFIG_B=y, CONFIG_C=y, CONFIG_N=8;"), "{message}");
    }
}
