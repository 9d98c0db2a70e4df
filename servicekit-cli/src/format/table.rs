//! A table for people.

use crate::report::one_line;

/// Rows of cells, in columns as wide as their widest cell.
#[derive(Debug)]
pub(crate) struct Table<const N: usize>(Vec<[String; N]>);

impl<const N: usize> Table<N> {
    pub(crate) fn new(head: [&str; N]) -> Self {
        Self(vec![head.map(str::to_owned)])
    }

    /// Adds a row. What others wrote cannot break it.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.0.push(cells.map(|cell| one_line(&cell)));
    }

    pub(crate) fn render(&self) -> String {
        let width = |column: usize| self.0.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<_> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
        let line = |row: &[String; N]| {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        self.0.iter().map(line).collect()
    }
}
