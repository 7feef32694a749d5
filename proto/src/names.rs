//! What a name may look like: labels and subdomains of DNS, label keys and values, port names, keys
//! of config maps. Kubernetes' rules in Kubernetes' words.
//!
//! Each function answers why the text is not allowed, or `Ok`. Which rule goes for which field is
//! admission's business.

/// Why a text is not a valid name, without the text itself.
pub type NameResult = Result<(), String>;

const LABEL_LENGTH_MAX: usize = 63;
const SUBDOMAIN_LENGTH_MAX: usize = 253;
const PORT_NAME_LENGTH_MAX: usize = 15;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";

/// `web-1`: what a namespace, a container and a volume are called.
pub fn dns_label(text: &str) -> NameResult {
    longest(text, LABEL_LENGTH_MAX)?;
    require(is_label(text), LABEL)
}

/// `web.example-1`: what most objects are called.
pub fn dns_subdomain(text: &str) -> NameResult {
    longest(text, SUBDOMAIN_LENGTH_MAX)?;
    require(text.split('.').all(is_label), SUBDOMAIN)
}

/// A label that starts with a letter: what a service is called.
pub fn dns_1035_label(text: &str) -> NameResult {
    longest(text, LABEL_LENGTH_MAX)?;
    require(is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase()), LABEL_1035)
}

/// The key of a label or an annotation: `app`, `example.com/app`.
pub fn label_key(text: &str) -> NameResult {
    let name = match text.split_once('/') {
        None => text,
        Some((prefix, name)) => {
            if prefix.is_empty() {
                return Err("prefix part must be non-empty".to_owned());
            }
            dns_subdomain(prefix).map_err(|why| format!("prefix part {why}"))?;
            name
        }
    };
    if name.contains('/') {
        return Err(
            "a qualified name must consist of a name and an optional DNS subdomain prefix with a single '/' (e.g. 'example.com/MyName')"
                .to_owned(),
        );
    }
    if name.is_empty() {
        return Err("name part must be non-empty".to_owned());
    }
    longest(name, LABEL_LENGTH_MAX).map_err(|why| format!("name part {why}"))?;
    require(is_loose(name), NAME_PART)
}

/// The value of a label; may be empty.
pub fn label_value(text: &str) -> NameResult {
    longest(text, LABEL_LENGTH_MAX)?;
    require(text.is_empty() || is_loose(text), LABEL_VALUE)
}

/// `http`: the name of a port.
pub fn port_name(text: &str) -> NameResult {
    longest(text, PORT_NAME_LENGTH_MAX)?;
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    require(
        !text.is_empty() && text.chars().all(|c| alphanumeric(c) || c == '-'),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    )?;
    require(
        text.contains(|c: char| c.is_ascii_lowercase()),
        "must contain at least one letter (a-z)",
    )?;
    require(!text.contains("--"), "must not contain consecutive hyphens")?;
    require(
        text.starts_with(alphanumeric) && text.ends_with(alphanumeric),
        "must not begin or end with a hyphen",
    )
}

/// A key of a config map, which becomes a file's name.
pub fn config_key(text: &str) -> NameResult {
    longest(text, SUBDOMAIN_LENGTH_MAX)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    require(!text.is_empty() && text.chars().all(allowed), CONFIG_KEY)?;
    require(text != ".", "must not be '.'")?;
    require(text != "..", "must not be '..'")?;
    require(!text.starts_with(".."), "must not start with '..'")
}

/// The name of an environment variable.
pub fn env_name(text: &str) -> NameResult {
    let allowed = |c: char| (c.is_ascii_graphic() || c == ' ') && c != '=';
    require(!text.is_empty() && text.chars().all(allowed), ENV_NAME)
}

fn is_label(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && text.chars().all(|c| alphanumeric(c) || c == '-')
}

/// Alphanumeric at both ends, `-`, `_` and `.` between.
fn is_loose(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn longest(text: &str, bytes_max: usize) -> NameResult {
    if text.len() > bytes_max {
        return Err(format!("must be no more than {bytes_max} characters"));
    }
    Ok(())
}

fn require(holds: bool, why: &str) -> NameResult {
    if holds { Ok(()) } else { Err(why.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rule = fn(&str) -> NameResult;

    #[test]
    fn table() {
        let long = "a".repeat(64);
        let cases: &[(&str, Rule, &[&str], &[&str])] = &[
            (
                "label",
                dns_label,
                &["a", "web-1", "1a"],
                &["", "-a", "a-", "A", "a.b", "a_b", &long],
            ),
            (
                "subdomain",
                dns_subdomain,
                &["a", "a.b-c.d", &long],
                &["", "a..b", ".a", "Web_1", "a."],
            ),
            ("1035", dns_1035_label, &["a", "a1"], &["1a", "", "a.b"]),
            (
                "key",
                label_key,
                &["app", "example.com/App_1", "a.b/c"],
                &["", "/a", "a/", "a/b/c", "a b", "A_B/c", &long],
            ),
            ("value", label_value, &["", "A.b_c-1"], &["-a", "a b", "é", &long]),
            (
                "port",
                port_name,
                &["http", "a-1"],
                &["", "80", "a--b", "-a", "HTTP", "abcdefghijklmnop"],
            ),
            ("config", config_key, &["a.txt", "_x", ".a"], &["", "a/b", ".", "..", "..a", "é"]),
            ("env", env_name, &["A", "a.b", "1"], &["", "A=B", "é"]),
        ];
        for (what, rule, good, bad) in cases {
            for text in *good {
                assert_eq!(rule(text), Ok(()), "{what} {text:?}");
            }
            for text in *bad {
                assert!(rule(text).is_err(), "{what} {text:?}");
            }
        }
    }
}
