//! `WWW-Authenticate`: what a registry wants to be shown (RFC 9110, 11.6.1).

/// A registry's demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user name and a password with every request.
    Basic,
    /// A token from a token service.
    Bearer(Bearer),
}

/// Where to get a token, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
}

/// The strongest demand among the values of the header that is understood.
pub(super) fn choose<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for value in values {
        match parse(value) {
            Some(Challenge::Basic) => basic = Some(Challenge::Basic),
            Some(bearer) => return Some(bearer),
            None => {}
        }
    }
    basic
}

fn parse(value: &str) -> Option<Challenge> {
    let (scheme, parameters) = value.trim().split_once(' ').unwrap_or_else(|| (value.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    let mut rest = parameters.trim_start_matches([' ', ',']);
    while let Some((name, after)) = rest.split_once('=') {
        let (text, after) = quoted_or_token(after)?;
        match name.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(text),
            "service" => service = Some(text),
            "scope" => scope = Some(text),
            _ => {}
        }
        rest = after.trim_start_matches([' ', ',']);
    }
    Some(Challenge::Bearer(Bearer { realm: realm?, service, scope }))
}

/// A parameter's value and what follows it.
fn quoted_or_token(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_whatever_their_spelling() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Challenge::Bearer(Bearer {
                realm: realm.into(),
                service: service.map(Into::into),
                scope: scope.map(Into::into),
            })
        };
        for (values, expected) in [
            (vec!["Basic realm=\"x\""], Some(Challenge::Basic)),
            (vec!["basic"], Some(Challenge::Basic)),
            (
                vec![r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push""#],
                Some(bearer("https://a/t", Some("s"), Some("repository:x:pull,push"))),
            ),
            (vec![r#"bearer  service=s, realm="h\"t""#], Some(bearer("h\"t", Some("s"), None))),
            (vec!["Basic realm=x", "Bearer realm=y"], Some(bearer("y", None, None))),
            (vec!["Bearer service=\"s\""], None),
            (vec!["Bearer realm=\"open"], None),
            (vec!["Negotiate"], None),
            (vec![], None),
        ] {
            assert_eq!(choose(values.iter().copied()), expected, "{values:?}");
        }
    }
}
