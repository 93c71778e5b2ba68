//! A table of grades, `name,grade` per line, as any program may have saved it.

use std::collections::BTreeSet;

use super::names;
use super::text_table::{Lines, decoded, refuse_other_files, stated_separator};

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GradeRow {
    /// Number of the line in the file, from 1.
    pub line: u64,
    /// File name, without folders.
    pub name: String,
    /// 0 to 4; `None`: the field is empty.
    pub grade: Option<u8>,
}

/// The rows of a table: UTF-8, UTF-16 or Latin-1, separated by `,` `;` `|` or tabs, quoted or not, with or without a
/// line of headings. The line and reason when one cannot be read.
pub(super) fn table(bytes: &[u8]) -> Result<GradeTable, (u64, String)> {
    refuse_other_files(bytes)?;
    let text = decoded(bytes);
    let (separator, text, skipped) = match stated_separator(&text) {
        Some((separator, rest)) => (separator, rest, 1),
        None => (likely_separator(&text), text.as_str(), 0),
    };
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .delimiter(separator)
        .from_reader(text.as_bytes());
    let mut columns = (0, 1);
    let mut rows = Vec::new();
    let mut one_hot = OneHot::default();
    let (mut is_certain, mut widest) = (false, 0);
    let mut lines = Lines::new(text, skipped);
    for (number, record) in reader.records().enumerate() {
        let record = record.map_err(|e| (lines.of(e.position()), e.to_string()))?;
        let line = lines.of(record.position());
        let record: Vec<&str> = record
            .iter()
            .map(|field| field.trim_matches('"').trim())
            .collect();
        if record.iter().all(|field| field.is_empty()) {
            continue;
        }
        if number == 0
            && let Some(named) = headings(&record)
        {
            one_hot.is_excluded = named.is_certain;
            is_certain = named.is_certain;
            columns = named.columns;
            continue;
        }
        one_hot.look_at(&record, columns.0, line);
        widest = widest.max(record.len());
        let (Some(&name), Some(&field)) = (record.get(columns.0), record.get(columns.1)) else {
            return Err((line, format!("has {} fields", record.len())));
        };
        let name = name.rsplit(['/', '\\']).next().unwrap_or(name).to_owned();
        let grade = match field {
            "" => None,
            field => Some(grade(field).ok_or_else(|| (line, format!("`{field}` is no grade")))?),
        };
        rows.push(GradeRow { line, name, grade });
    }
    match one_hot.found() {
        Some(line) => Err((
            line,
            "each of its lines has a single 1 in one of several columns, and which column means which grade is not known: make it one column `grade` with 0 to 4".to_owned(),
        )),
        None => Ok(GradeTable {
            doubt: (!is_certain && widest > 2).then_some(columns.1 + 1),
            rows,
        }),
    }
}

/// A table that was read.
#[derive(Debug)]
pub(super) struct GradeTable {
    pub rows: Vec<GradeRow>,
    /// The column that grades are taken from, from 1, where there are others and no heading says which one holds them.
    pub doubt: Option<usize>,
}

/// Whether a table has a column per grade: in every line a single 1 among zeros, not always in the same column.
#[derive(Default)]
struct OneHot {
    /// The headings name one column of grades.
    is_excluded: bool,
    first_line: Option<u64>,
    hot: BTreeSet<usize>,
}

impl OneHot {
    fn look_at(&mut self, record: &[&str], name: usize, line: u64) {
        let values: Vec<Option<u8>> = record
            .iter()
            .enumerate()
            .filter(|(column, _)| *column != name)
            .map(|(_, field)| grade(field))
            .collect();
        let is_bit = |value: &Option<u8>| matches!(value, Some(0 | 1));
        let ones = values.iter().filter(|value| **value == Some(1)).count();
        if values.len() < 3 || !values.iter().all(is_bit) || ones != 1 {
            self.is_excluded = true;
            return;
        }
        self.first_line.get_or_insert(line);
        self.hot
            .extend(values.iter().position(|value| *value == Some(1)));
    }

    /// The first line of such a table.
    fn found(&self) -> Option<u64> {
        self.first_line
            .filter(|_| !self.is_excluded && self.hot.len() > 1)
    }
}

/// Also `2.0`, as spreadsheets write whole numbers.
fn grade(field: &str) -> Option<u8> {
    let whole = field
        .trim_end_matches('0')
        .strip_suffix('.')
        .unwrap_or(field);
    whole.parse().ok().filter(|grade| *grade <= 4)
}

/// Where a table's headings place names and grades.
struct Headings {
    /// Of names and of grades.
    columns: (usize, usize),
    /// Whether one column, and no other, is called grades.
    is_certain: bool,
}

/// What a record says as headings, when it holds some: no number and no name of a picture.
fn headings(record: &[&str]) -> Option<Headings> {
    let is_value = |field: &str| field.parse::<f64>().is_ok() || names::is_picture(field);
    if record.len() < 2 || record.iter().any(|field| is_value(field)) {
        return None;
    }
    let with = |words: &[&str]| -> Vec<usize> {
        let is_one = |heading: &str| words.iter().any(|word| heading.contains(word));
        let of_all = record.iter().map(|heading| heading.to_lowercase());
        of_all
            .enumerate()
            .filter(|(_, heading)| is_one(heading))
            .map(|(column, _)| column)
            .collect()
    };
    let names = [&["image", "name", "file"][..], &["id"]].map(with);
    let name = names.iter().flatten().next().copied();
    let words = ["grade", "grading", "level", "label", "diagnosis"];
    // Grades of something else, and who gave them.
    let others = with(&[
        "dme", "macula", "edema", "oedema", "quality", "grader", "gradable",
    ]);
    let exact: Vec<usize> = (0..record.len())
        .filter(|column| words.contains(&record[*column].to_lowercase().as_str()))
        .collect();
    let fitting: Vec<usize> = with(&words)
        .into_iter()
        .filter(|column| !others.contains(column))
        .collect();
    let grades = if exact.len() == 1 { exact } else { fitting };
    let is_certain = grades.len() == 1;
    let columns = match (name, grades.first()) {
        (Some(name), Some(&grade)) if name != grade => (name, grade),
        _ => (0, 1),
    };
    Some(Headings {
        columns,
        is_certain: is_certain && columns.1 == grades[0],
    })
}

/// The separator that most lines have.
fn likely_separator(text: &str) -> u8 {
    let lines: Vec<&str> = text.split(['\n', '\r']).take(200).collect();
    let with = |separator: &u8| {
        let separator = char::from(*separator);
        lines.iter().filter(|line| line.contains(separator)).count()
    };
    let mut best = b',';
    for separator in [b';', b'\t', b'|'] {
        if with(&separator) > with(&best) {
            best = separator;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Vec<(String, Option<u8>)> {
        table(bytes)
            .unwrap()
            .rows
            .into_iter()
            .map(|row| (row.name, row.grade))
            .collect()
    }

    #[test]
    fn a_table_is_the_same_however_it_was_saved() {
        let plain = "0000_1.PNG,2\n0001_1.PNG,0\nm\u{fc}ller.png,4\n";
        let utf_16 = |text: &str, mark: &[u8], little: bool| {
            let units = text.encode_utf16().flat_map(|unit| match little {
                true => unit.to_le_bytes(),
                false => unit.to_be_bytes(),
            });
            [mark.to_vec(), units.collect()].concat()
        };
        let latin_1: Vec<u8> = plain.chars().map(|c| c as u8).collect();
        let expected: Vec<(String, Option<u8>)> =
            [("0000_1.PNG", 2), ("0001_1.PNG", 0), ("müller.png", 4)]
                .map(|(name, grade)| (name.to_owned(), Some(grade)))
                .to_vec();
        for bytes in [
            plain.as_bytes().to_vec(),
            [b"\xef\xbb\xbf", plain.as_bytes()].concat(),
            plain.replace('\n', "\r\n").into_bytes(),
            plain.replace('\n', "\r").into_bytes(),
            plain.replace(',', ";").into_bytes(),
            plain.replace(',', "\t").into_bytes(),
            plain.replace(',', " | ").into_bytes(),
            latin_1,
            utf_16(plain, b"\xff\xfe", true),
            utf_16(plain, b"\xfe\xff", false),
            utf_16(plain, b"", true),
            utf_16(plain, b"", false),
            format!("sep=;\r\n{}", plain.replace(',', ";")).into_bytes(),
            plain
                .replace("0000_1.PNG,2", "\"C:\\data\\0000_1.PNG\" , \"2.0\"")
                .into_bytes(),
            format!("image,grade\n{plain}").into_bytes(),
            format!("name,retinopathy\n\n{plain}\n,\n").into_bytes(),
            "no;level;image\n1;2;a/b/0000_1.PNG\n2;0;0001_1.PNG\n3;4;m\u{fc}ller.png"
                .as_bytes()
                .to_vec(),
        ] {
            assert_eq!(read(&bytes), expected, "{}", decoded(&bytes));
        }
    }

    #[test]
    fn what_is_no_grade_is_told_with_its_line() {
        assert_eq!(
            table(b"a.png,1\n\nb.png,7\n").unwrap_err(),
            (3, "`7` is no grade".to_owned())
        );
        assert_eq!(
            table(b"a.png,x\n").unwrap_err(),
            (1, "`x` is no grade".to_owned())
        );
        assert_eq!(
            table(b"sep=,\na.png\n").unwrap_err(),
            (2, "has 1 fields".to_owned())
        );
        let one_hot = "each of its lines has a single 1";
        for text in [
            "a.png,1,0,0,0,0\nb.png,0,0,1,0,0\n",
            "image,none,mild,severe\na.png,1,0,0\nb.png,0,1.0,0\n",
            "image,grade 0,grade 1,grade 2\na.png,1,0,0\nb.png,0,1,0\n",
        ] {
            let (_, reason) = table(text.as_bytes()).unwrap_err();
            assert!(reason.starts_with(one_hot), "{reason}");
        }
        // Grades beside other columns of 0 and 1.
        let beside = "image,grade,MA,HE\na.png,1,0,0\nb.png,0,1,0\n";
        assert_eq!(read(beside.as_bytes()).len(), 2);
        assert_eq!(read(b"a.png,1,0,1\nb.png,0,1,0\n").len(), 2);
        assert_eq!(read(b"a.png,\n"), [("a.png".to_owned(), None)]);
        let excel = table(b"PK\x03\x04 and more").unwrap_err();
        assert!(excel.1.contains("save it as CSV"), "{excel:?}");
        let dicom = table(&[&[0; 128][..], b"DICM"].concat()).unwrap_err();
        assert!(
            dicom.1.starts_with("is a DICOM file, not a table as text"),
            "{dicom:?}"
        );
        assert_eq!(read(b""), []);
    }

    #[test]
    fn the_column_of_grades_is_that_of_its_very_name() {
        let first = |text: &str| {
            let table = table(text.as_bytes()).unwrap();
            (table.rows[0].grade, table.doubt)
        };
        for (headings, doubt) in [
            ("image,DME grade,DR grade", None),
            ("image,grader,grade", None),
            ("image,quality,level", None),
            ("image,stage 1,stage 2", Some(2)),
        ] {
            let grade = if doubt.is_some() { 1 } else { 3 };
            let text = format!("{headings}\na.png,1,3\n");
            assert_eq!(first(&text), (Some(grade), doubt), "{headings}");
        }
        assert_eq!(first("a.png,1,3\n"), (Some(1), Some(2)));
        assert_eq!(first("a.png,1\n"), (Some(1), None));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = table(&bytes);
        }
    }
}
