//! `-o yaml` and `-o json`: keys sorted, lists not indented, as kubectl writes them.

use serde_json::{Map, Value};

use crate::error::{Outcome, fail};

/// YAML text, ending in a newline.
pub fn yaml(value: &Value) -> Outcome<String> {
    let options = serde_saphyr::ser_options! { indent_step: 2, compact_list_indent: true, folded_wrap_chars: 1 << 20 };
    let mut text = String::new();
    serde_saphyr::to_fmt_writer_with_options(&mut text, &sorted(value), options)
        .map_err(|error| fail(format!("write yaml: {error}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// JSON with four blanks a level, ending in a newline.
pub fn json(value: &Value) -> Outcome<String> {
    use serde::Serialize;
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    sorted(value)
        .serialize(&mut serializer)
        .map_err(|error| fail(format!("write json: {error}")))?;
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(|error| fail(format!("write json: {error}")))
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            Value::Object(
                keys.into_iter().map(|k| (k.clone(), sorted(&map[k]))).collect::<Map<_, _>>(),
            )
        }
        Value::Array(list) => Value::Array(list.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn yaml_reads_like_kubectls() {
        let object = serde_json::json!({
            "kind": "ConfigMap",
            "apiVersion": "v1",
            "data": {"yes": "true", "number": "1", "text": "a\nb\n"},
            "list": [{"name": "a", "ports": [1, 2]}, {"name": "b"}],
            "empty": {},
        });
        expect![[r#"
            apiVersion: v1
            data:
              number: "1"
              text: |
                a
                b
              "yes": "true"
            empty: {}
            kind: ConfigMap
            list:
            - name: a
              ports:
              - 1
              - 2
            - name: b
        "#]]
        .assert_eq(&yaml(&object).unwrap());
    }
}
