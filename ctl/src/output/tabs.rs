//! Elastic tab stops, as Go's `text/tabwriter` has them: a column is a run of neighbouring lines
//! that have a cell there, so a `describe` page lines up block by block just as kubectl's does.

/// Lays out `text`, whose cells end in tabs. A line's last cell (no tab behind it) is left alone.
/// `width_min` is the least width of a column, padding included.
pub fn layout(text: &str, width_min: usize, padding: usize) -> String {
    let lines: Vec<Vec<&str>> = text.split('\n').map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<Vec<usize>> =
        lines.iter().map(|cells| vec![0; cells.len().saturating_sub(1)]).collect();
    let columns = widths.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..columns {
        let mut line = 0;
        while line < lines.len() {
            if widths[line].len() <= column {
                line += 1;
                continue;
            }
            let start = line;
            while line < lines.len() && widths[line].len() > column {
                line += 1;
            }
            let widest = (start..line).map(|l| width_of(lines[l][column])).max().unwrap_or(0);
            let width = if widest == 0 { 0 } else { (widest + padding).max(width_min) };
            for row in &mut widths[start..line] {
                row[column] = width;
            }
        }
    }
    let mut out = String::with_capacity(text.len() * 2);
    for (index, cells) in lines.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let mut row = String::new();
        for (column, cell) in cells.iter().enumerate() {
            row.push_str(cell);
            if let Some(width) = widths[index].get(column) {
                row.extend(std::iter::repeat_n(' ', width.saturating_sub(width_of(cell))));
            }
        }
        out.push_str(row.trim_end());
    }
    out
}

/// Columns a text takes on a terminal, as far as names and numbers go.
pub fn width_of(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_end_with_their_block() {
        let text = "Name:\tweb\nNamespace:\tdefault\nConditions:\n  Type\tStatus\n  Ready\tTrue\n";
        assert_eq!(
            layout(text, 0, 2),
            "Name:       web\nNamespace:  default\nConditions:\n  Type   Status\n  Ready  True\n"
        );
    }
}
