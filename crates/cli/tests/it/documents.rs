//! What the documents show is what there is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::home::Home;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// The blocks of a document that follow a comment: what the comment says, and the block.
fn marked_blocks(text: &str) -> Vec<(String, String)> {
    let marks = text.split("<!-- ").skip(1);
    marks
        .map(|rest| {
            let (mark, rest) = rest.split_once(" -->\n").expect("a comment ends its line");
            let (_, block) = rest.split_once('\n').expect("a block follows the comment");
            let (block, _) = block.split_once("```\n").expect("a block ends");
            (mark.to_owned(), block.to_owned())
        })
        .collect()
}

#[test]
fn readme_shows_the_examples_as_they_are() {
    let blocks = marked_blocks(&document("README.md"));
    let shown: Vec<_> = blocks.iter().filter(|(mark, _)| mark.ends_with(".rs")).collect();
    assert_eq!(shown.len(), 2);
    for (file, block) in shown {
        assert_eq!(*block, document(file), "the block of {file} in README.md");
    }
}

#[test]
fn readme_session_says_what_it_shows() {
    let blocks = marked_blocks(&document("README.md"));
    let (_, session) = blocks.iter().find(|(mark, _)| mark == "run").unwrap();
    let commands: Vec<&str> = session.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    let script: String = commands
        .iter()
        .map(|line| format!("echo '$ {}'\n{line}\n", line.replace('\'', "'\\''")))
        .collect();

    let home = Home::with_busybox();
    let programs = Path::new(env!("CARGO_BIN_EXE_msb")).parent().unwrap().to_owned();
    let path = microsandbox::env::read(microsandbox::env::PATH).unwrap();
    let path = std::env::join_paths([programs].into_iter().chain(std::env::split_paths(&path)));
    let output = Command::new("sh")
        .args(["-c", &script])
        .env("MSB_HOME", home.path())
        .env("MSB_BOOT", "cold")
        .env("PATH", path.unwrap())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), *session, "{stderr}");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn every_command_is_documented() {
    let help = Home::with_guest().run(&["--help"]).stdout;
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let names = commands.lines().take_while(|line| line.starts_with("  "));
    let text = document("docs/cli.md");
    for name in names.filter_map(|line| line.split_whitespace().next()) {
        let documented = text.contains(&format!("`msb {name}"));
        assert!(documented || name == "help", "`msb {name}` is not in docs/cli.md");
    }
}
