//! Tables: columns as wide as their widest cell, two spaces between them.

use std::fmt;

/// Rows of cells below a line of headings.
#[derive(Debug)]
pub(crate) struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// A table without rows.
    pub(crate) fn new(headings: [&str; COLUMNS]) -> Self {
        Self { rows: vec![headings.map(str::to_owned)] }
    }

    /// Adds a row. Control characters become question marks: a cell may hold what others named.
    pub(crate) fn row(&mut self, cells: [String; COLUMNS]) {
        let printable = |cell: String| cell.replace(char::is_control, "?");
        self.rows.push(cells.map(printable));
    }
}

impl<const COLUMNS: usize> fmt::Display for Table<COLUMNS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
        });
        let mut separator = "";
        for row in &self.rows {
            let cells = row.iter().zip(widths);
            let line: Vec<String> = cells.map(|(cell, width)| format!("{cell:width$}")).collect();
            write!(f, "{separator}{}", line.join("  ").trim_end())?;
            separator = "\n";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_without_spaces() {
        let mut table = Table::new(["NAME", "STATUS"]);
        table.row(["a".into(), "running".into()]);
        table.row(["été\n".into(), "x".into()]);
        assert_eq!(table.to_string(), "NAME  STATUS\na     running\nété?  x");
    }
}
