//! Detach keys: the sequence that lets a user leave a terminal session, found in what they type.

/// `ctrl-]`, as telnet has it: no shell and no common editor needs it.
pub(crate) const DEFAULT_KEYS: &str = "ctrl-]";

/// Takes a sequence of keys out of a stream of typed bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    sequence: Vec<u8>,
    /// The beginning of the sequence, typed and not yet passed on.
    held: Vec<u8>,
}

impl DetachKeys {
    /// Reads Docker's syntax: keys separated by commas, each a character or `ctrl-` and one of
    /// `a` to `z`, `@`, `[`, `\`, `]`, `^`, `_`. An empty text is no sequence at all.
    ///
    /// # Errors
    /// The key that is none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let keys = text.split(',').filter(|_| !text.is_empty());
        let sequence = keys.map(|name| key(name).ok_or_else(|| name.to_owned()));
        Ok(Self { sequence: sequence.collect::<Result<_, _>>()?, held: Vec::new() })
    }

    /// Appends to `passed` what of `typed` is for the command; true once the sequence is complete.
    pub(crate) fn filter(&mut self, typed: &[u8], passed: &mut Vec<u8>) -> bool {
        if self.sequence.is_empty() {
            passed.extend_from_slice(typed);
            return false;
        }
        for byte in typed {
            self.held.push(*byte);
            while !self.sequence.starts_with(&self.held) {
                passed.push(self.held.remove(0));
            }
            if self.held == self.sequence {
                self.held.clear();
                return true;
            }
        }
        false
    }
}

fn key(name: &str) -> Option<u8> {
    match name.as_bytes() {
        [byte] => Some(*byte),
        [prefix @ .., byte] if prefix.eq_ignore_ascii_case(b"ctrl-") => {
            match byte.to_ascii_uppercase() {
                letter @ b'@'..=b'_' => Some(letter - b'@'),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_docker_writes_them() {
        for (text, sequence) in [
            ("ctrl-]", Ok(vec![0x1d])),
            ("ctrl-p,ctrl-q", Ok(vec![0x10, 0x11])),
            ("CTRL-@,a,^", Ok(vec![0, b'a', b'^'])),
            ("", Ok(vec![])),
            ("ctrl-1", Err("ctrl-1".to_owned())),
            ("ctrl-p,,", Err(String::new())),
            ("enter", Err("enter".to_owned())),
        ] {
            assert_eq!(DetachKeys::parse(text).map(|keys| keys.sequence), sequence, "{text:?}");
        }
    }

    #[test]
    fn sequence_is_found_however_it_is_cut_and_nothing_else_is_lost() {
        for (keys, pieces, passed, found) in [
            ("ctrl-]", &["a\x1db"][..], "a", true),
            ("a,b", &["xa", "b"], "x", true),
            ("a,b", &["aab"], "a", true),
            ("a,a,b", &["aaab"], "a", true),
            ("a,b", &["a", "c"], "ac", false),
            ("a,b", &["a"], "", false),
            ("", &["a\x1d"], "a\x1d", false),
        ] {
            let mut detach = DetachKeys::parse(keys).unwrap();
            let mut seen = Vec::new();
            let complete = pieces.iter().any(|piece| detach.filter(piece.as_bytes(), &mut seen));
            assert_eq!(
                (seen.as_slice(), complete),
                (passed.as_bytes(), found),
                "{keys} {pieces:?}"
            );
        }
    }
}
