//! Tables as kubectl prints them: three blanks between columns, no lines, headers in capitals.
//! A table remembers its widths, so that rows printed later by a watch line up with the first ones.

use super::tabs::width_of;

const PADDING: usize = 3;
const WIDTH_MIN: usize = 6;

#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    pub header: &'static str,
    /// Shown with `-o wide` only.
    pub wide: bool,
}

pub const fn column(header: &'static str) -> Column {
    Column { header, wide: false }
}

pub const fn wide(header: &'static str) -> Column {
    Column { header, wide: true }
}

#[derive(Debug, Clone, Default)]
pub struct Table {
    headers: Vec<String>,
    widths: Vec<usize>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headers: Vec<String>) -> Self {
        Self { widths: vec![0; headers.len()], headers, rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines of the rows added since the last call, the header first when asked for.
    /// `paint` may colour a padded cell: (header, cell).
    pub fn take_lines(
        &mut self,
        with_header: bool,
        paint: impl Fn(&str, String) -> String,
    ) -> Vec<String> {
        let rows = std::mem::take(&mut self.rows);
        let header = with_header.then(|| self.headers.clone());
        let all: Vec<Vec<String>> = header.into_iter().chain(rows).collect();
        for cells in &all {
            for (width, cell) in self.widths.iter_mut().zip(cells) {
                *width = (*width).max((width_of(cell) + PADDING).max(WIDTH_MIN));
            }
        }
        let lines = all.iter().enumerate();
        lines.map(|(index, cells)| self.line(cells, with_header && index == 0, &paint)).collect()
    }

    fn line(
        &self,
        cells: &[String],
        plain: bool,
        paint: impl Fn(&str, String) -> String,
    ) -> String {
        let mut line = String::new();
        for (index, cell) in cells.iter().enumerate() {
            let last = index + 1 == cells.len();
            let fill = if last { 0 } else { self.widths[index].saturating_sub(width_of(cell)) };
            if plain {
                line.push_str(cell);
            } else {
                line.push_str(&paint(&self.headers[index], cell.clone()));
            }
            line.extend(std::iter::repeat_n(' ', fill));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_rows_keep_the_columns() {
        let mut table = Table::new(vec!["NAME".into(), "AGE".into()]);
        table.row(vec!["a-long-name".into(), "3s".into()]);
        let first = table.take_lines(true, |_, cell| cell);
        assert_eq!(first, ["NAME          AGE", "a-long-name   3s"]);
        table.row(vec!["b".into(), "4s".into()]);
        assert_eq!(table.take_lines(false, |_, cell| cell), ["b             4s"]);
    }
}
