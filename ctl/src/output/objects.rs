//! `-o`: objects as tables, YAML, JSON, names or through a JSONPath.

use jiff::Timestamp;
use serde_json::{Value, json};
use timonier_proto::Kind;

use super::Out;
use super::printers;
use super::table::Table;
use super::yaml;
use crate::error::{Outcome, fail};
use crate::fields::Fields;
use crate::jsonpath::Template;
use crate::resolve::Item;

/// What `-o` asks for.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Format {
    #[default]
    Table,
    Wide,
    Yaml,
    Json,
    Name,
    JsonPath(Template),
    /// Header and path of each column.
    Columns(Vec<(String, Template)>),
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "" => Format::Table,
            "wide" => Format::Wide,
            "yaml" => Format::Yaml,
            "json" => Format::Json,
            "name" => Format::Name,
            _ => match text.split_once('=') {
                Some(("jsonpath", template)) => Format::JsonPath(Template::parse(template)?),
                Some(("jsonpath-file", path)) => {
                    let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
                    Format::JsonPath(Template::parse(text.trim_end_matches('\n'))?)
                }
                Some(("custom-columns", columns)) => Format::Columns(parse_columns(columns)?),
                _ => {
                    return Err(
                        "output formats are wide, yaml, json, name, jsonpath=TEMPLATE and \
                                custom-columns=NAME:PATH,…"
                            .into(),
                    );
                }
            },
        })
    }
}

fn parse_columns(text: &str) -> Result<Vec<(String, Template)>, String> {
    text.split(',')
        .map(|column| {
            let (name, path) = column
                .split_once(':')
                .ok_or_else(|| format!("expected NAME:PATH, got {column:?}"))?;
            Ok((name.to_owned(), Template::parse(path)?))
        })
        .collect()
}

/// How to show a listing.
#[derive(Debug, Clone, Default)]
pub struct Show {
    pub format: Format,
    pub with_namespace: bool,
    pub with_kind: bool,
    pub no_headers: bool,
    pub show_labels: bool,
    /// One object that was asked for by name: shown as itself rather than as a list.
    pub single: bool,
}

/// A table of one kind that rows can be added to later.
pub struct Listing {
    kind: Kind,
    show: Show,
    table: Table,
    header_due: bool,
}

impl Listing {
    pub fn new(kind: Kind, show: &Show) -> Self {
        let is_wide = show.format == Format::Wide;
        let mut headers = Vec::new();
        if show.with_namespace && kind.info().namespaced {
            headers.push("NAMESPACE".to_owned());
        }
        let columns = printers::columns(kind).iter().filter(|c| is_wide || !c.wide);
        headers.extend(columns.map(|c| c.header.to_owned()));
        if show.show_labels {
            headers.push("LABELS".to_owned());
        }
        Self { kind, show: show.clone(), table: Table::new(headers), header_due: !show.no_headers }
    }

    pub fn add(&mut self, object: &Value, now: Timestamp) {
        let is_wide = self.show.format == Format::Wide;
        let mut row = Vec::new();
        if self.show.with_namespace && self.kind.info().namespaced {
            row.push(object.namespace().to_owned());
        }
        let cells = printers::cells(self.kind, object, now);
        let columns = printers::columns(self.kind);
        for (column, mut cell) in columns.iter().zip(cells) {
            if column.wide && !is_wide {
                continue;
            }
            if self.show.with_kind && column.header == "NAME" {
                cell = format!("{}/{cell}", self.kind.info().qualified_singular());
            }
            row.push(cell);
        }
        if self.show.show_labels {
            let labels = object.pairs("metadata.labels");
            let text: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            row.push(printers::or_none(&text.join(",")));
        }
        self.table.row(row);
    }

    /// The lines added since the last call, with the header the first time.
    pub fn lines(&mut self, paint: impl Fn(&str, String) -> String) -> Vec<String> {
        if self.table.is_empty() {
            return Vec::new();
        }
        let header = std::mem::replace(&mut self.header_due, false);
        self.table.take_lines(header, paint)
    }

    pub fn flush(&mut self, out: &Out) -> Outcome {
        for line in self.lines(|header, cell| out.paint_cell(header, cell)) {
            out.line(line)?;
        }
        Ok(())
    }
}

/// A whole table as text.
#[cfg(test)]
pub fn table_text(kind: Kind, wide: bool, objects: &[Value], now: Timestamp) -> String {
    let format = if wide { Format::Wide } else { Format::Table };
    let mut listing = Listing::new(kind, &Show { format, ..Default::default() });
    for object in objects {
        listing.add(object, now);
    }
    listing.lines(|_, cell| cell).iter().map(|line| format!("{line}\n")).collect()
}

/// Shows the objects as asked. Tables of several kinds are separated by an empty line.
pub fn show(out: &Out, items: &[Item], show: &Show) -> Outcome {
    match &show.format {
        Format::Table | Format::Wide => show_tables(out, items, show),
        Format::Yaml => out.bytes(yaml::yaml(&whole(items, show.single))?.as_bytes()),
        Format::Json => out.bytes(yaml::json(&whole(items, show.single))?.as_bytes()),
        Format::Name => items.iter().try_for_each(|item| out.line(item.title())),
        Format::JsonPath(template) => {
            let text = template.render(&whole(items, show.single));
            // Like kubectl there is no newline in a pipe; on a terminal the prompt needs one.
            let newline = out.terminal && !text.is_empty() && !text.ends_with('\n');
            out.bytes(if newline { text + "\n" } else { text }.as_bytes())
        }
        Format::Columns(columns) => {
            let mut table = Table::new(columns.iter().map(|(name, _)| name.clone()).collect());
            for item in items {
                let cell = |template: &Template| printers::or_none(&template.render(&item.value));
                table.row(columns.iter().map(|(_, template)| cell(template)).collect());
            }
            let lines = table.take_lines(!show.no_headers, |_, cell| cell);
            lines.iter().try_for_each(|line| out.line(line))
        }
    }
}

fn show_tables(out: &Out, items: &[Item], show: &Show) -> Outcome {
    let now = Timestamp::now();
    let mut rest = items;
    let mut first = true;
    while let Some(head) = rest.first() {
        let run = rest.iter().take_while(|item| item.kind == head.kind).count();
        if !std::mem::replace(&mut first, false) {
            out.line("")?;
        }
        let mut listing = Listing::new(head.kind, show);
        for item in &rest[..run] {
            listing.add(&item.value, now);
        }
        listing.flush(out)?;
        rest = &rest[run..];
    }
    Ok(())
}

fn whole(items: &[Item], single: bool) -> Value {
    match items {
        [item] if single => item.value.clone(),
        _ => json!({
            "apiVersion": "v1",
            "kind": "List",
            "metadata": {"resourceVersion": ""},
            "items": items.iter().map(|item| &item.value).collect::<Vec<_>>(),
        }),
    }
}

/// `--sort-by`: numbers as numbers, times and texts as texts.
pub fn sort(items: &mut [Item], path: &str) -> Outcome {
    let template =
        Template::parse(path).map_err(|why| fail(format!("--sort-by {path:?}: {why}")))?;
    let key =
        |item: &Item| -> Option<Value> { template.find(&item.value).first().map(|v| (*v).clone()) };
    items.sort_by(|a, b| {
        let (a, b) = (key(a), key(b));
        match (a.as_ref().and_then(Value::as_f64), b.as_ref().and_then(Value::as_f64)) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            _ => {
                let text = |v: Option<Value>| v.map(|v| crate::jsonpath::plain(&v));
                text(a).cmp(&text(b))
            }
        }
    });
    Ok(())
}
