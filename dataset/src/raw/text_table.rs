//! A table of any columns as text: CSV or TSV, as any program may have saved it.

use fovea_pictures::decode::{Content, HEAD, sniff};

use super::names;

/// A table that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TextTable {
    /// Names of the columns, no two alike: the headings, or `column 1`, ... where the table has none.
    pub columns: Vec<String>,
    pub rows: Vec<TextRow>,
}

/// A line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TextRow {
    /// Number of the line in the file, from 1.
    pub line: u64,
    /// One per column of the table; empty where the line ends earlier.
    pub fields: Vec<String>,
}

/// Lines by which the separator is found out.
const SAMPLED: usize = 50;

/// The separators that are known.
const SEPARATORS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// Reads a table: UTF-8, UTF-16 or Latin-1, separated by `,` `;` `|` or tabs, quoted or not. The first line holds headings
/// unless one of its fields is a number or names a picture.
///
/// # Errors
/// The line and reason when one cannot be read.
pub(super) fn text_table(bytes: &[u8]) -> Result<TextTable, (u64, String)> {
    refuse_other_files(bytes)?;
    let text = decoded(bytes);
    let (separator, text, skipped) = match stated_separator(&text) {
        Some((separator, rest)) => (separator, rest, 1),
        None => (separator(&text), text.as_str(), 0),
    };
    let mut lines = Lines::new(text, skipped);
    let mut rows = Vec::new();
    for record in reader(text, separator).records() {
        let record = record.map_err(|e| (lines.of(e.position()), e.to_string()))?;
        let line = lines.of(record.position());
        let bare = |field: &str| field.trim_matches('"').trim().to_owned();
        let fields: Vec<String> = record.iter().map(bare).collect();
        if fields.iter().any(|field| !field.is_empty()) {
            rows.push(TextRow { line, fields });
        }
    }
    let has_headings = rows.first().is_some_and(|row| are_headings(&row.fields));
    let headings = match has_headings {
        true => rows.remove(0).fields,
        false => Vec::new(),
    };
    let width = rows.iter().map(|row| row.fields.len()).max().unwrap_or(0);
    if has_headings && let Some(row) = rows.iter().find(|row| row.fields.len() > headings.len()) {
        let extra = row.fields.iter().skip(headings.len());
        if extra.clone().any(|field| !field.is_empty()) {
            return Err((
                row.line,
                format!(
                    "has {} fields, the first line {}",
                    row.fields.len(),
                    headings.len()
                ),
            ));
        }
    }
    let columns = distinct(headings, if has_headings { 0 } else { width });
    for row in &mut rows {
        row.fields.resize(columns.len(), String::new());
    }
    Ok(TextTable { columns, rows })
}

impl TextTable {
    /// The same table, when its first line turns out to hold no headings.
    pub fn without_headings(self) -> Self {
        let count = self.columns.len();
        let line = self
            .rows
            .first()
            .map_or(1, |row| row.line.saturating_sub(1).max(1));
        let first = TextRow {
            line,
            fields: self.columns,
        };
        Self {
            columns: distinct(Vec::new(), count),
            rows: std::iter::once(first).chain(self.rows).collect(),
        }
    }
}

/// Names of columns, made different from each other; at least `count` of them.
fn distinct(headings: Vec<String>, count: usize) -> Vec<String> {
    let count = count.max(headings.len());
    let mut seen = std::collections::HashSet::new();
    let mut headings = headings.into_iter();
    let name = |at: usize| {
        let heading = headings.next().unwrap_or_default();
        let stem = match heading.as_str() {
            "" => format!("column {}", at + 1),
            _ => heading,
        };
        let mut name = stem.clone();
        let mut copy = 1;
        while !seen.insert(name.clone()) {
            copy += 1;
            name = format!("{stem} ({copy})");
        }
        name
    };
    (0..count).map(name).collect()
}

fn are_headings(fields: &[String]) -> bool {
    let is_value = |field: &String| field.parse::<f64>().is_ok() || names::is_picture(field);
    !fields.iter().any(is_value)
}

fn reader(text: &str, separator: u8) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .delimiter(separator)
        .from_reader(text.as_bytes())
}

/// The separator by which most of the first lines have as many fields as the first, two or more; then the one that gives
/// most fields. A comma in a table of one column.
fn separator(text: &str) -> u8 {
    let fit = |separator: u8| {
        let records = reader(text, separator).into_records();
        let widths: Vec<usize> = records
            .take(SAMPLED)
            .map_while(Result::ok)
            .map(|record| record.len())
            .collect();
        let first = widths.first().copied().unwrap_or(0);
        let alike = widths.iter().filter(|width| **width == first).count();
        match first {
            0 | 1 => (0, 0),
            _ => (alike, first),
        }
    };
    let mut best = (b',', fit(b','));
    for other in SEPARATORS {
        let found = fit(other);
        if found > best.1 {
            best = (other, found);
        }
    }
    best.0
}

/// Refuses workbooks, pictures and archives, by their first bytes.
pub(super) fn refuse_other_files(bytes: &[u8]) -> Result<(), (u64, String)> {
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\xd0\xcf\x11\xe0") {
        let reason = "is an Excel workbook, not a table as text: open it and save it as CSV";
        return Err((1, reason.to_owned()));
    }
    if let Content::Other { what, help } = sniff(&bytes[..bytes.len().min(HEAD)]) {
        return Err((1, format!("is {what}, not a table as text: {help}")));
    }
    Ok(())
}

/// Numbers of lines by their place in a text; empty lines count, which the reader of the table skips.
pub(super) struct Lines<'a> {
    text: &'a [u8],
    at: usize,
    line: u64,
}

impl<'a> Lines<'a> {
    pub fn new(text: &'a str, skipped: u64) -> Self {
        Self {
            text: text.as_bytes(),
            at: 0,
            line: 1 + skipped,
        }
    }

    /// The line of a record; records come in order.
    pub fn of(&mut self, position: Option<&csv::Position>) -> u64 {
        let begin = position.map_or(self.at, |position| position.byte() as usize);
        while let Some(&byte) = self.text.get(self.at) {
            let is_end = matches!(byte, b'\r' | b'\n');
            if self.at >= begin && !is_end {
                break;
            }
            let is_first_of_two = byte == b'\r' && self.text.get(self.at + 1) == Some(&b'\n');
            self.line += u64::from(is_end && !is_first_of_two);
            self.at += 1;
        }
        self.line
    }
}

/// The text of a file: UTF-8, UTF-16 (with a mark or without) or Latin-1.
pub(super) fn decoded(bytes: &[u8]) -> String {
    let utf_16 = |bytes: &[u8], little: bool| {
        let units = bytes.chunks_exact(2).map(|pair| {
            let pair = [pair[0], pair[1]];
            if little {
                u16::from_le_bytes(pair)
            } else {
                u16::from_be_bytes(pair)
            }
        });
        char::decode_utf16(units)
            .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect()
    };
    if let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
        return names::text(rest);
    }
    if let Some(rest) = bytes.strip_prefix(b"\xff\xfe") {
        return utf_16(rest, true);
    }
    if let Some(rest) = bytes.strip_prefix(b"\xfe\xff") {
        return utf_16(rest, false);
    }
    // Without a mark: every other byte of plain text is zero.
    let zeros = |first: usize| {
        bytes
            .iter()
            .skip(first)
            .step_by(2)
            .filter(|byte| **byte == 0)
            .count()
    };
    let half = bytes.len() / 2;
    match (zeros(0), zeros(1)) {
        (even, odd) if odd > half / 2 && odd > even => utf_16(bytes, true),
        (even, _) if even > half / 2 => utf_16(bytes, false),
        _ => names::text(bytes),
    }
}

/// `sep=;`, which spreadsheets put before the first line; the rest after it.
pub(super) fn stated_separator(text: &str) -> Option<(u8, &str)> {
    let (line, rest) = text.split_once('\n')?;
    let line = line.trim_end_matches('\r').trim_matches('"');
    match line.strip_prefix("sep=")?.as_bytes() {
        [separator] => Some((*separator, rest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(table: &TextTable) -> Vec<Vec<&str>> {
        table
            .rows
            .iter()
            .map(|row| row.fields.iter().map(String::as_str).collect())
            .collect()
    }

    fn utf_16(text: &str, little: bool) -> Vec<u8> {
        let units = text.encode_utf16().flat_map(|unit| match little {
            true => unit.to_le_bytes(),
            false => unit.to_be_bytes(),
        });
        units.collect()
    }

    #[test]
    fn a_table_is_the_same_however_it_was_saved() {
        let plain = "id,D,name\na.jpg,1,m\u{fc}ller\nb.jpg,0,\n";
        let expected = text_table(plain.as_bytes()).unwrap();
        assert_eq!(expected.columns, ["id", "D", "name"]);
        assert_eq!(
            fields(&expected),
            [["a.jpg", "1", "müller"], ["b.jpg", "0", ""]]
        );
        assert_eq!((expected.rows[0].line, expected.rows[1].line), (2, 3));
        let bom = "\u{feff}";
        for bytes in [
            format!("{bom}{plain}").into_bytes(),
            plain.replace('\n', "\r\n").into_bytes(),
            plain.replace('\n', "\r").into_bytes(),
            plain.replace(',', ";").into_bytes(),
            plain.replace(',', "\t").into_bytes(),
            plain.replace(',', " | ").into_bytes(),
            plain.replace("a.jpg", "\"a.jpg\"").into_bytes(),
            utf_16(&format!("{bom}{plain}"), true),
            utf_16(&format!("{bom}{plain}"), false),
            utf_16(plain, true),
            plain.chars().map(|c| c as u8).collect(),
        ] {
            assert_eq!(text_table(&bytes).unwrap(), expected, "{}", decoded(&bytes));
        }
        let stated = text_table(format!("sep=;\n{}", plain.replace(',', ";")).as_bytes()).unwrap();
        assert_eq!(fields(&stated), fields(&expected));
        assert_eq!(stated.rows[0].line, 3);
    }

    #[test]
    fn columns_have_names_of_their_own() {
        let columns = |text: &str| text_table(text.as_bytes()).unwrap().columns;
        assert_eq!(
            columns("a.png,1,0\nb.png,0\n"),
            ["column 1", "column 2", "column 3"]
        );
        assert_eq!(
            columns("id,,x,x,x\na,1,2,3,4\n"),
            ["id", "column 2", "x", "x (2)", "x (3)"]
        );
        assert_eq!(columns(""), [""; 0]);
        assert_eq!(columns("image\na.png\n"), ["image"]);
        // Empty fields behind the last heading are no fields; others are a mistake.
        assert_eq!(columns("id,x\na,1,,\n"), ["id", "x"]);
        let (line, reason) = text_table(b"id,x\na,1\n\nb,1,2\n").unwrap_err();
        assert_eq!(
            (line, reason.as_str()),
            (4, "has 3 fields, the first line 2")
        );
    }

    #[test]
    fn json_in_a_field_is_not_taken_apart() {
        let json = r#"[{"bbox": [1, 2, 3, 4], "label": "car"}]"#;
        let quoted = json.replace('"', "\"\"");
        for separator in [",", "\t", ";"] {
            let text = format!("id{separator}boxes\na{separator}\"{quoted}\"\nb{separator}[]\n");
            let table = text_table(text.as_bytes()).unwrap();
            assert_eq!(fields(&table), [["a", json], ["b", "[]"]], "{separator}");
        }
    }

    #[test]
    fn other_files_are_named() {
        assert!(
            text_table(b"PK\x03\x04 and more")
                .unwrap_err()
                .1
                .contains("save it as CSV")
        );
        let dicom = text_table(&[&[0; 128][..], b"DICM"].concat()).unwrap_err();
        assert!(dicom.1.starts_with("is a DICOM file"), "{dicom:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_rows_have_the_tables_columns(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(table) = text_table(&bytes) {
                prop_assert!(table.rows.iter().all(|row| row.fields.len() == table.columns.len()));
            }
        }

        #[test]
        fn what_was_written_is_read(
            rows in prop::collection::vec(prop::collection::vec("[a-z ,;\"|\t\n]{0,6}", 3), 1..8),
        ) {
            let quoted = |field: &String| format!("\"{}\"", field.replace('"', "\"\""));
            let line = |row: &Vec<String>| row.iter().map(quoted).collect::<Vec<_>>().join(",");
            let text: String = rows.iter().map(|row| line(row) + "\n").collect();
            let text = format!("\"a\",\"b\",\"c\"\n{text}");
            let table = text_table(text.as_bytes()).unwrap();
            prop_assert_eq!(&table.columns, &["a", "b", "c"]);
            let bare = |field: &String| field.trim().trim_matches('"').trim().to_owned();
            let expected: Vec<Vec<String>> = rows
                .iter()
                .map(|row| row.iter().map(bare).collect::<Vec<_>>())
                .filter(|row| row.iter().any(|field| !field.is_empty()))
                .collect();
            let found: Vec<Vec<String>> = table.rows.into_iter().map(|row| row.fields).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
