//! kubectl's JSONPath templates: `{.items[*].metadata.name}`, `{range .items[*]}{.kind}{"\n"}{end}`,
//! filters `[?(@.type=="Ready")]`, slices, unions, `..name`, and escaped dots `labels.app\.io/x`.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::Value;

/// Ranges within ranges.
const RANGE_DEPTH_MAX: usize = 32;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Path(Path),
    Range(Path, Vec<Part>),
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Key(String),
    Wildcard,
    Descend,
    Index(Vec<i64>),
    Keys(Vec<String>),
    Slice(Option<i64>, Option<i64>, i64),
    Filter(Box<Filter>),
}

#[derive(Debug, Clone, PartialEq)]
struct Filter {
    left: Operand,
    test: Option<(String, Operand)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(Path),
    Literal(Value),
}

type Input<'a> = Peekable<Chars<'a>>;

impl Template {
    /// `{.a}` templates; a bare `.a` or `a` is one path, as kubectl takes it for `--sort-by`.
    pub fn parse(text: &str) -> Result<Template, String> {
        let bare = !text.contains('{');
        let wrapped = match text {
            _ if !bare => text.to_owned(),
            _ if text.starts_with(['.', '[', '$', '@']) => format!("{{{text}}}"),
            _ => format!("{{.{text}}}"),
        };
        let mut input = wrapped.chars().peekable();
        let parts = parse_parts(&mut input, 0)?;
        Ok(Template(parts))
    }

    /// Fills the template in. A path that finds nothing prints nothing.
    pub fn render(&self, root: &Value) -> String {
        let mut out = String::new();
        render(&self.0, root, root, &mut out);
        out
    }

    /// What the first path finds.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let path = self.0.iter().find_map(|part| match part {
            Part::Path(path) => Some(path),
            _ => None,
        });
        path.map(|path| path.find(root, root)).unwrap_or_default()
    }
}

fn render(parts: &[Part], root: &Value, current: &Value, out: &mut String) {
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Path(path) => {
                let found = path.find(root, current);
                let texts: Vec<String> = found.into_iter().map(plain).collect();
                out.push_str(&texts.join(" "));
            }
            Part::Range(path, body) => {
                for value in path.find(root, current) {
                    render(body, root, value, out);
                }
            }
        }
    }
}

/// Texts bare, everything else as JSON.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// `depth`: ranges around these parts.
fn parse_parts(input: &mut Input, depth: usize) -> Result<Vec<Part>, String> {
    if depth > RANGE_DEPTH_MAX {
        return Err(format!("more than {RANGE_DEPTH_MAX} ranges within ranges"));
    }
    let mut parts = Vec::new();
    let mut text = String::new();
    while let Some(c) = input.next() {
        if c != '{' {
            text.push(c);
            continue;
        }
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        let inner = braces(input)?;
        let inner = inner.trim();
        if inner == "end" {
            return if depth > 0 { Ok(parts) } else { Err("{end} without {range}".into()) };
        }
        if let Some(path) = inner.strip_prefix("range ") {
            let path = parse_path(path.trim())?;
            parts.push(Part::Range(path, parse_parts(input, depth + 1)?));
        } else if inner.starts_with(['"', '\'']) {
            parts.push(Part::Text(quoted(inner)?));
        } else {
            parts.push(Part::Path(parse_path(inner)?));
        }
    }
    if depth > 0 {
        return Err("{range} without {end}".into());
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

/// Text up to the closing brace; quotes may hold braces.
fn braces(input: &mut Input) -> Result<String, String> {
    let mut inner = String::new();
    let mut quote = None;
    while let Some(c) = input.next() {
        match (quote, c) {
            (None, '}') => return Ok(inner),
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), _) if q == c => quote = None,
            (Some(_), '\\') => {
                inner.push(c);
                inner.extend(input.next());
                continue;
            }
            _ => {}
        }
        inner.push(c);
    }
    Err(format!("unclosed action: {{{inner}"))
}

fn quoted(text: &str) -> Result<String, String> {
    let quote = text.chars().next().unwrap_or('"');
    let body = text
        .strip_prefix(quote)
        .and_then(|rest| rest.strip_suffix(quote))
        .ok_or_else(|| format!("unterminated text {text}"))?;
    let mut out = String::new();
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        });
    }
    Ok(out)
}

fn parse_path(text: &str) -> Result<Path, String> {
    let mut input = text.chars().peekable();
    let path = path(&mut input)?;
    match input.peek() {
        None => Ok(path),
        Some(_) => {
            Err(format!("unrecognized character in {text:?} at {:?}", input.collect::<String>()))
        }
    }
}

fn path(input: &mut Input) -> Result<Path, String> {
    let mut steps = Vec::new();
    if matches!(input.peek(), Some('$' | '@')) {
        input.next();
    } else if matches!(input.peek(), Some(c) if *c != '.' && *c != '[') {
        steps.push(key(input)?);
    }
    loop {
        match input.peek() {
            Some('.') => {
                input.next();
                match input.peek() {
                    Some('.') => {
                        input.next();
                        steps.push(Step::Descend);
                        if input.peek().is_some_and(|c| *c != '[') {
                            steps.push(key(input)?);
                        }
                    }
                    Some('[') | None => {}
                    Some(_) => steps.push(key(input)?),
                }
            }
            Some('[') => {
                input.next();
                steps.push(bracket(input)?);
            }
            _ => return Ok(Path(steps)),
        }
    }
}

fn key(input: &mut Input) -> Result<Step, String> {
    let mut name = String::new();
    while let Some(&c) = input.peek() {
        match c {
            '\\' => {
                input.next();
                name.extend(input.next());
                continue;
            }
            '.' | '[' | ']' | ')' | '=' | '!' | '<' | '>' | ' ' | '|' | '&' => break,
            _ => name.push(c),
        }
        input.next();
    }
    match name.as_str() {
        "" => Err("a name is missing after a dot".into()),
        "*" => Ok(Step::Wildcard),
        _ => Ok(Step::Key(name)),
    }
}

fn bracket(input: &mut Input) -> Result<Step, String> {
    let mut inner = String::new();
    let (mut depth, mut quote) = (0, None);
    loop {
        let c = input.next().ok_or("unterminated array: ] is missing")?;
        match (quote, c) {
            (None, ']') if depth == 0 => break,
            (None, '[') => depth += 1,
            (None, ']') => depth -= 1,
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), _) if q == c => quote = None,
            _ => {}
        }
        inner.push(c);
    }
    let inner = inner.trim();
    if inner == "*" || inner.is_empty() {
        return Ok(Step::Wildcard);
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        return parse_filter(filter).map(|f| Step::Filter(Box::new(f)));
    }
    if inner.starts_with(['\'', '"']) {
        return inner
            .split(',')
            .map(|k| quoted(k.trim()))
            .collect::<Result<_, _>>()
            .map(Step::Keys);
    }
    let number = |text: &str| -> Result<Option<i64>, String> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| format!("invalid array index {inner:?}"))
    };
    if inner.contains(':') {
        let mut bounds = inner.splitn(3, ':');
        let mut next = || number(bounds.next().unwrap_or(""));
        return Ok(Step::Slice(next()?, next()?, next()?.unwrap_or(1)));
    }
    let indexes =
        inner.split(',').map(|i| number(i)?.ok_or(format!("invalid array index {inner:?}")));
    indexes.collect::<Result<_, _>>().map(Step::Index)
}

fn parse_filter(text: &str) -> Result<Filter, String> {
    let mut input = text.trim().chars().peekable();
    let left = operand(&mut input)?;
    let rest: String = input.collect();
    let rest = rest.trim();
    if rest.is_empty() {
        return Ok(Filter { left, test: None });
    }
    let operator = ["==", "!=", "<=", ">=", "<", ">"]
        .into_iter()
        .find(|op| rest.starts_with(op))
        .ok_or_else(|| format!("unrecognized operator in filter {text:?}"))?;
    let mut input = rest[operator.len()..].trim().chars().peekable();
    let right = operand(&mut input)?;
    Ok(Filter { left, test: Some((operator.to_owned(), right)) })
}

fn operand(input: &mut Input) -> Result<Operand, String> {
    match input.peek() {
        Some('@' | '.' | '$') => path(input).map(Operand::Path),
        Some('"' | '\'') => {
            let quote = *input.peek().expect("it was peeked");
            let mut text = String::from(quote);
            input.next();
            for c in input.by_ref() {
                text.push(c);
                if c == quote {
                    break;
                }
            }
            quoted(&text).map(|t| Operand::Literal(Value::String(t)))
        }
        _ => {
            let mut word = String::new();
            while input.peek().is_some_and(|c| !" =!<>".contains(*c)) {
                word.extend(input.next());
            }
            Ok(Operand::Literal(serde_json::from_str(&word).unwrap_or(Value::String(word))))
        }
    }
}

impl Path {
    fn find<'a>(&self, root: &'a Value, current: &'a Value) -> Vec<&'a Value> {
        let mut values = vec![current];
        for step in &self.0 {
            values = values.into_iter().flat_map(|value| step.from(root, value)).collect();
        }
        values
    }
}

impl Step {
    fn from<'a>(&self, root: &'a Value, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Step::Key(key) => value.get(key).into_iter().collect(),
            Step::Keys(keys) => keys.iter().filter_map(|key| value.get(key)).collect(),
            Step::Wildcard => children(value),
            Step::Descend => {
                let mut all = vec![value];
                all.extend(children(value).into_iter().flat_map(|v| Step::Descend.from(root, v)));
                all
            }
            Step::Index(indexes) => {
                let list = value.as_array().map_or(&[][..], Vec::as_slice);
                indexes.iter().filter_map(|i| list.get(absolute(*i, list.len())?)).collect()
            }
            Step::Slice(start, end, step) => slice(value, *start, *end, *step),
            Step::Filter(filter) => {
                children(value).into_iter().filter(|v| filter.accepts(root, v)).collect()
            }
        }
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn absolute(index: i64, len: usize) -> Option<usize> {
    let index = if index < 0 { index + len as i64 } else { index };
    usize::try_from(index).ok()
}

fn slice(value: &Value, start: Option<i64>, end: Option<i64>, step: i64) -> Vec<&Value> {
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    let bound = |i: i64| absolute(i, list.len()).unwrap_or(0).min(list.len());
    let (start, end) = (bound(start.unwrap_or(0)), end.map_or(list.len(), bound));
    let step = usize::try_from(step).unwrap_or(1).max(1);
    list.get(start..end.max(start)).unwrap_or_default().iter().step_by(step).collect()
}

impl Filter {
    fn accepts(&self, root: &Value, value: &Value) -> bool {
        let resolve = |operand: &Operand| -> Option<Value> {
            match operand {
                Operand::Literal(literal) => Some(literal.clone()),
                Operand::Path(path) => path.find(root, value).first().map(|v| (*v).clone()),
            }
        };
        let left = resolve(&self.left);
        let Some((operator, right)) = &self.test else { return left.is_some() };
        let (Some(left), Some(right)) = (left, resolve(right)) else { return operator == "!=" };
        let order = match (left.as_f64(), right.as_f64()) {
            (Some(l), Some(r)) => l.partial_cmp(&r),
            _ => Some(plain(&left).cmp(&plain(&right))),
        };
        match (operator.as_str(), order) {
            ("==", Some(o)) => o.is_eq(),
            ("!=", Some(o)) => o.is_ne(),
            ("<", Some(o)) => o.is_lt(),
            ("<=", Some(o)) => o.is_le(),
            (">", Some(o)) => o.is_gt(),
            (">=", Some(o)) => o.is_ge(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectls_templates_find_what_they_should() {
        let root = serde_json::json!({
            "kind": "List",
            "items": [
                {"metadata": {"name": "a", "labels": {"app.io/x": "1"}}, "n": 5,
                 "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "h"}]}},
                {"metadata": {"name": "b"}, "n": 10, "status": {"ready": true}},
            ],
        });
        for (template, text) in [
            ("{.items[0].metadata.name}", "a"),
            (".items[1].metadata.name", "b"),
            ("{.items[*].metadata.name}", "a b"),
            ("{.items[-1:].metadata.name}", "b"),
            ("{.items[0:1].metadata.name}", "a"),
            ("{.items[0,1].n}", "5 10"),
            ("{.items[0].metadata.labels.app\\.io/x}", "1"),
            ("{.items[0].metadata['labels']['app.io/x']}", "1"),
            ("{.items[0].status.addresses[?(@.type==\"InternalIP\")].address}", "10.0.0.1"),
            ("{.items[?(@.n > 7)].metadata.name}", "b"),
            ("{.items[?(@.status.ready==true)].metadata.name}", "b"),
            ("{range .items[*]}{.metadata.name}={.n}{\"\\n\"}{end}", "a=5\nb=10\n"),
            ("{..name}", "a b"),
            ("{.nothing.here}", ""),
            ("kind: {.kind}!", "kind: List!"),
            ("{$.kind}", "List"),
            ("{.items[1].status}", "{\"ready\":true}"),
        ] {
            assert_eq!(Template::parse(template).unwrap().render(&root), text, "{template}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth| format!("{}{}", "{range .a}".repeat(depth), "{end}".repeat(depth));
        assert!(Template::parse(&nested(RANGE_DEPTH_MAX)).is_ok());
        assert!(Template::parse(&nested(100_000)).is_err());
    }

    #[test]
    fn malformed_templates_say_why() {
        for template in [
            "{.a",
            "{range .x}{.y}",
            "{end}",
            "{.a[}",
            "{.a[x]}",
            "{.a..}x{",
            "{.a['b',]}",
            "{.a[']}",
        ] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
    }
}
