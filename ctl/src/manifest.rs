//! Manifests from files, folders and standard input: YAML or JSON, several documents each.
//!
//! Here is found out only whether a text *is* YAML and whose object it describes; what the fields
//! mean is the master's business.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Failure, Outcome, bail, fail};
use crate::fields::Fields;

/// Largest manifest file, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Deepest folder below one that `-R` walks.
const FOLDER_DEPTH_MAX: usize = 32;
const EXTENSIONS: &[&str] = &["yaml", "yml", "json"];

/// One object of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The file, or `standard input`.
    pub source: String,
    /// Counted from 1; empty ones do not count.
    pub index: usize,
    pub value: Value,
}

impl Document {
    /// `web.yaml, document 2 (Deployment web)`.
    pub fn place(&self) -> String {
        let kind = match self.value.text("kind") {
            "" => "no kind",
            kind => kind,
        };
        let name = match self.value.name() {
            "" => self.value.text("metadata.generateName"),
            name => name,
        };
        let named = if name.is_empty() { kind.to_owned() } else { format!("{kind} {name}") };
        format!("{}, document {} ({named})", self.source, self.index)
    }
}

/// All documents of all sources, in order. A malformed source fails the whole, so that nothing is
/// done by half.
pub fn read(sources: &[String], recursive: bool) -> Outcome<Vec<Document>> {
    if sources.is_empty() {
        return Err(fail("must specify a file with -f").hint("-f - reads standard input"));
    }
    let mut documents = Vec::new();
    for source in sources {
        if source == "-" {
            let mut text = String::new();
            std::io::stdin()
                .take(FILE_BYTES_MAX)
                .read_to_string(&mut text)
                .map_err(|error| fail(format!("read standard input: {error}")))?;
            documents.extend(parse("standard input", &text)?);
            continue;
        }
        if source.starts_with("http://") || source.starts_with("https://") {
            return Err(fail(format!("read {source}: URLs are not read"))
                .hint(format!("curl -s {source} | timonctl apply -f -")));
        }
        for path in files(Path::new(source), recursive)? {
            documents.extend(parse(&path.display().to_string(), &read_file(&path)?)?);
        }
    }
    if documents.is_empty() {
        return bail(format!("no objects found in {}", sources.join(", ")));
    }
    Ok(documents)
}

fn read_file(path: &Path) -> Outcome<String> {
    let wrong = |error: std::io::Error| {
        fail(format!("read {}: {}", path.display(), crate::client::plain_io(&error)))
    };
    let size = std::fs::metadata(path).map_err(wrong)?.len();
    if size > FILE_BYTES_MAX {
        return bail(format!("read {}: {size} bytes are too many for a manifest", path.display()));
    }
    std::fs::read_to_string(path).map_err(wrong)
}

fn files(path: &Path, recursive: bool) -> Outcome<Vec<PathBuf>> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => "does not exist".into(),
            _ => crate::client::plain_io(&error),
        };
        fail(format!("the path {:?} {reason}", path.display().to_string()))
    })?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    walk(path, recursive, 0, &mut found)?;
    if found.is_empty() {
        return Err(fail(format!("no .yaml, .yml or .json files in folder {}", path.display()))
            .hint("-R also looks into the folders below"));
    }
    Ok(found)
}

fn walk(folder: &Path, recursive: bool, depth: usize, found: &mut Vec<PathBuf>) -> Outcome {
    if depth > FOLDER_DEPTH_MAX {
        return bail(format!(
            "folder {} lies deeper than {FOLDER_DEPTH_MAX} levels",
            folder.display()
        ));
    }
    let wrong = |error: std::io::Error| fail(format!("read folder {}: {error}", folder.display()));
    let mut entries = std::fs::read_dir(folder)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(wrong)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            if recursive {
                walk(&path, recursive, depth + 1, found)?;
            }
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| EXTENSIONS.contains(&e))
        {
            found.push(path);
        }
    }
    Ok(())
}

/// The documents of one text. `List` objects are taken apart.
pub fn parse(source: &str, text: &str) -> Outcome<Vec<Document>> {
    let json = text.trim_start().starts_with('{');
    let values = if json { parse_json(source, text)? } else { parse_yaml(source, text)? };
    let mut documents = Vec::new();
    for (index, value) in values.into_iter().enumerate() {
        let document = |value| Document { source: source.to_owned(), index: index + 1, value };
        match value {
            Value::Null => {}
            Value::Object(ref map) if is_list(map) => {
                documents.extend(value.list("items").iter().cloned().map(document));
            }
            Value::Object(_) => documents.push(document(value)),
            other => {
                let found = match other {
                    Value::Array(_) => "a list",
                    Value::String(_) => "a text",
                    _ => "a plain value",
                };
                return bail(format!(
                    "{source}, document {}: an object with apiVersion, kind and metadata is wanted, found {found}",
                    index + 1
                ));
            }
        }
    }
    Ok(documents)
}

fn is_list(map: &serde_json::Map<String, Value>) -> bool {
    let kind = map.get("kind").and_then(Value::as_str).unwrap_or_default();
    kind.ends_with("List") && map.get("items").is_some_and(Value::is_array)
}

fn parse_json(source: &str, text: &str) -> Outcome<Vec<Value>> {
    serde_json::Deserializer::from_str(text).into_iter::<Value>().collect::<Result<_, _>>().or_else(
        |error| {
            // `{` also opens YAML's flow style.
            documents(text).map_err(|_| {
                let text = error.to_string();
                let cause = text.split(" at line ").next().unwrap_or(&text).to_owned();
                malformed(source, error.line() as u64, error.column() as u64, &cause)
            })
        },
    )
}

/// `0644` is octal, as kubectl reads it and as every manifest with modes means it.
fn documents(text: &str) -> Result<Vec<Value>, serde_saphyr::Error> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_multiple_with_options(text, options)
}

fn parse_yaml(source: &str, text: &str) -> Outcome<Vec<Value>> {
    documents(text).map_err(|error| {
        let (line, column) = error.location().map_or((0, 0), |l| (l.line(), l.column()));
        malformed(source, line, column, &cause(&error))
    })
}

/// What is wrong with a YAML text, in one line, without the place.
pub fn cause(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    // The place stands in front already.
    let cut = [" at line ", " (line ", " at byte ", ", set Duplicate"]
        .iter()
        .filter_map(|m| first.find(m))
        .min();
    let plain = cut.map_or(first, |end| &first[..end]);
    match plain.split_once(": ") {
        Some((place, rest)) if place.starts_with("line ") => rest.to_owned(),
        _ => plain.to_owned(),
    }
}

fn malformed(source: &str, line: u64, column: u64, cause: &str) -> Failure {
    let place = if line > 0 { format!("{source}:{line}:{column}") } else { source.to_owned() };
    fail(format!("{place}: {cause}"))
        .hint("the text is not YAML or JSON; nothing was sent to the master")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(text: &str, expected: Expect) {
        let shown = match parse("web.yaml", text) {
            Ok(documents) => documents.iter().map(|d| d.place() + "\n").collect(),
            Err(failure) => failure.to_string() + "\n",
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn documents_know_their_place() {
        check(
            "kind: Pod\nmetadata: {name: a}\n---\n# nothing\n---\nkind: Service\nmetadata:\n  name: b\n",
            expect![[r#"
                web.yaml, document 1 (Pod a)
                web.yaml, document 2 (Service b)
            "#]],
        );
        check(
            r#"{"kind":"List","items":[{"kind":"Pod","metadata":{"name":"a"}},{"kind":"Node"}]}"#,
            expect![[r#"
                web.yaml, document 1 (Pod a)
                web.yaml, document 1 (Node)
            "#]],
        );
    }

    #[test]
    fn malformed_text_says_where_and_why() {
        check(
            "kind: Pod\nmetadata:\n  name: a\n name: b\n",
            expect![[r#"
            error: web.yaml:4:2: while parsing a block mapping, did not find expected key
            hint: the text is not YAML or JSON; nothing was sent to the master
        "#]],
        );
        check(
            "kind: Pod\nkind: Service\n",
            expect![[r#"
            error: web.yaml:2:1: duplicate mapping key: kind
            hint: the text is not YAML or JSON; nothing was sent to the master
        "#]],
        );
        check(
            "spec: [1, 2\n",
            expect![[r#"
            error: web.yaml:1:7: unclosed bracket '['
            hint: the text is not YAML or JSON; nothing was sent to the master
        "#]],
        );
        check(
            "metadata:\n\tname: a\n",
            expect![[r#"
            error: web.yaml:2:2: tabs disallowed within this context (block indentation)
            hint: the text is not YAML or JSON; nothing was sent to the master
        "#]],
        );
        check(
            "{\"kind\": \"Pod\",,}",
            expect![[r#"
            error: web.yaml:1:16: key must be a string
            hint: the text is not YAML or JSON; nothing was sent to the master
        "#]],
        );
        check(
            "- a\n- b\n",
            expect![[r#"
            error: web.yaml, document 1: an object with apiVersion, kind and metadata is wanted, found a list
        "#]],
        );
    }

    #[test]
    fn folders_are_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        for (name, object) in [("b.yaml", "b"), ("a.json", "a"), ("c.txt", "c"), ("sub/d.yml", "d")]
        {
            let text = format!("{{\"kind\": \"Pod\", \"metadata\": {{\"name\": \"{object}\"}}}}");
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let source = vec![folder.path().display().to_string()];
        let names = |recursive| -> Vec<String> {
            read(&source, recursive).unwrap().iter().map(|d| d.value.name().to_owned()).collect()
        };
        assert_eq!(names(false), ["a", "b"]);
        assert_eq!(names(true), ["a", "b", "d"]);
        assert!(
            read(&["/nowhere".into()], false).unwrap_err().to_string().contains("does not exist")
        );
    }

    #[test]
    fn a_leading_zero_is_octal_as_in_kubectl() {
        let read =
            documents("mode: 0400\nother: 0o644\nplain: 10\ntext: '0400'\nzero: 0\n").unwrap();
        let expected =
            serde_json::json!({"mode": 256, "other": 420, "plain": 10, "text": "0400", "zero": 0});
        assert_eq!(read, [expected]);
    }
}
