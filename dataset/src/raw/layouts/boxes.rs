//! Pictures with tables of numbers and of boxes that a detector drew: a model reads them beside the picture.
//!
//! The published header is `image_name, interesting/not interesting, num_person, num_vehicles, avg_person_conf, total_boxes,
//! bounding_boxes`, the last with JSON: `[{"bbox": [x1, y1, x2, y2], "score": 0.9, "label": "person"}]`.

use fovea_pictures::decode;
use serde_json::Value;

use super::csv::columns::{self, Asked, Place, answer, filled, is_measured, is_row_number, number};
use super::csv::{self, holds_tables, join, read_table};
use super::named::{NamedPictures, distinct_ids};
use crate::raw::layout::Layout;
use crate::raw::names::first_few;
use crate::raw::scan::Scan;
use crate::raw::set::RawSet;
use crate::raw::text_table::TextTable;
use crate::raw::tree::Folders;
use crate::{Crop, Error, Result};

/// Pictures, and a table with numbers and boxes for each.
pub struct Boxes;

/// What a box shows, as its columns tell it apart.
const VEHICLES: [&str; 5] = ["car", "truck", "bus", "motorcycle", "vehicle"];

/// The numbers of each box, in the order of its columns.
const OF_BOX: [&str; 8] = [
    "x1", "y1", "x2", "y2", "score", "person", "vehicle", "other",
];

impl Layout for Boxes {
    fn name(&self) -> &'static str {
        "boxes"
    }

    fn looks_like(&self) -> &'static str {
        "pictures, and beside them a table (csv, tsv) with a label, numbers, and a column of boxes as JSON ([{\"bbox\": [x1, y1, x2, y2], \"score\": 0.9, \"label\": \"person\"}])"
    }

    fn is_at(&self, folders: &Folders, folder: &str) -> bool {
        holds_tables(folders, folder)
    }

    fn crop(&self) -> Crop {
        Crop::None
    }

    fn turn(&self) -> u8 {
        1
    }

    fn confirms(&self, scan: &mut Scan, root: &str) -> bool {
        has_boxes(scan, root)
    }

    fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet> {
        let given = scan.options().labels.clone();
        let joined = join(scan, root, &|table, others, place| {
            asked(table, others, place, &given)
        })?;
        // All tables have the columns of the first: it is sorted before the forms and the tests.
        let first = &joined.tables[0];
        let label_headings: Vec<String> = match asked(&first.table, &[], first.place, &given) {
            Ok(asked) => asked.headings().into_iter().map(str::to_owned).collect(),
            Err(_) => Vec::new(),
        };
        let Some(drawn) = boxes_column(&first.table) else {
            let problem = format!("{} has no column of boxes", scan.name(first.position));
            let help = "a column holds boxes when each of its fields is a JSON list; without boxes use --layout csv";
            return Err(scan.error(problem, help));
        };
        let drawn = first.table.columns[drawn].clone();
        let numbers = numeric(&first.table, first.place, &label_headings);
        let most = scan.options().max_boxes as usize;
        let mut images = Vec::new();
        for (mut image, table, row) in joined.images {
            let named = &joined.tables[table];
            let row = &named.table.rows[row];
            let bad = |reason: String| Error::Csv {
                path: scan.describe(named.position),
                line: row.line,
                reason,
            };
            let field = |heading: &String| {
                columns::column_called(&named.table, heading)
                    .map(|column| row.fields[column].as_str())
                    .ok_or_else(|| bad(format!("has no column `{heading}`")))
            };
            for heading in &numbers {
                let value = match field(heading)? {
                    "" => 0.0,
                    text => number(text)
                        .ok_or_else(|| bad(format!("`{text}` in `{heading}` is no number")))?,
                };
                image.columns.push(value);
            }
            let found = boxes(field(&drawn)?).map_err(&bad)?;
            let size = match found.iter().any(|one| one.is_in_pixels()) {
                true => picture_size(scan, image.image)?,
                false => [1.0, 1.0],
            };
            image.columns.extend(as_columns(found, most, size));
            images.push(image);
        }
        distinct_ids(scan.folders(), root, &mut images);
        let of_boxes = (1..=most).flat_map(|n| OF_BOX.map(|what| format!("box {n} {what}")));
        let names = numbers.into_iter().chain(of_boxes).collect();
        let task = joined
            .task
            .with_columns(names)
            .map_err(|e| scan.error(e, "give the columns of the table names that differ"))?;
        Ok(RawSet { task, images })
    }
}

/// Whether a table in `root` that can be read has a column of boxes.
pub(super) fn has_boxes(scan: &mut Scan, root: &str) -> bool {
    let pictures = NamedPictures::below(scan.folders(), root);
    csv::tables(scan.folders(), root)
        .into_iter()
        .any(|position| {
            let table = read_table(scan, position, &pictures);
            table.is_ok_and(|table| boxes_column(&table).is_some())
        })
}

/// The column of which every field is a list of boxes, and one is not empty.
fn boxes_column(table: &TextTable) -> Option<usize> {
    (0..table.columns.len()).find(|column| {
        let mut is_drawn = false;
        let all = filled(table, *column).all(|field| match boxes(field) {
            Ok(boxes) => {
                is_drawn |= !boxes.is_empty();
                field.starts_with('[')
            }
            Err(_) => false,
        });
        all && is_drawn
    })
}

/// One column of yes and no: that which the user names, or the only one, or the one that is called as labels are.
fn asked(
    table: &TextTable,
    others: &[&TextTable],
    place: Place,
    given: &[String],
) -> std::result::Result<Asked, (String, String)> {
    let yes = |column: usize| {
        let heading = table.columns[column].clone();
        let classes = classes(&heading);
        let is_answer = |field: &str| answer(field, &classes).is_some();
        let mut fields = filled(table, column).peekable();
        (fields.peek().is_some() && fields.all(is_answer))
            .then_some(Asked::Yes { heading, classes })
    };
    if let [one] = given
        && let Some(column) = columns::column_called(table, one)
        && let Some(asked) = yes(column)
    {
        return Ok(asked);
    }
    if !given.is_empty() {
        return columns::asked(table, others, place, given);
    }
    let is_free = |column: &usize| {
        *column != place.image
            && Some(*column) != place.split
            && Some(*column) != place.group
            && !is_measured(&table.columns[*column])
    };
    let found: Vec<usize> = (0..table.columns.len())
        .filter(is_free)
        .filter(|column| yes(*column).is_some())
        .collect();
    let is_called = |column: &&usize| table.columns[**column].contains('/');
    let chosen = match found[..] {
        [one] => Some(one),
        _ => found.iter().find(is_called).copied(),
    };
    match (chosen.and_then(yes), found.is_empty()) {
        (Some(asked), _) => Ok(asked),
        (None, true) => columns::asked(table, others, place, given),
        (None, false) => {
            let names: Vec<&str> = found.iter().map(|c| table.columns[*c].as_str()).collect();
            Err((
                format!("several columns hold yes and no: {}", first_few(&names, 12)),
                "choose the label with --labels COLUMN".to_owned(),
            ))
        }
    }
}

/// The classes of a column of yes and no, `no` first: `interesting/not interesting` names both.
fn classes(heading: &str) -> [String; 2] {
    match heading.split_once('/') {
        Some((yes, no)) if !yes.trim().is_empty() && !no.trim().is_empty() => {
            [no.trim().to_owned(), yes.trim().to_owned()]
        }
        _ => [format!("not {heading}"), heading.to_owned()],
    }
}

/// Headings of the columns of numbers that are no label and no number of the row, in the order of the table.
fn numeric(table: &TextTable, place: Place, labels: &[String]) -> Vec<String> {
    let is_number = |column: &usize| {
        let heading = &table.columns[*column];
        let mut fields = filled(table, *column).peekable();
        *column != place.image
            && Some(*column) != place.split
            && Some(*column) != place.group
            && !labels.contains(heading)
            && !is_row_number(heading)
            && fields.peek().is_some()
            && fields.all(|field| number(field).is_some())
    };
    let columns = (0..table.columns.len()).filter(is_number);
    columns
        .map(|column| table.columns[column].clone())
        .collect()
}

/// One box of a picture.
#[derive(Clone, Debug, PartialEq)]
struct DetectedBox {
    /// x1, y1, x2, y2; in pixels, or in shares of the picture's sides where none is above 1.
    corners: [f32; 4],
    score: f32,
    label: String,
}

impl DetectedBox {
    fn is_in_pixels(&self) -> bool {
        self.corners.iter().any(|corner| *corner > 1.0)
    }
}

/// The boxes of a field: a JSON list, or the same as Python prints it. None in an empty field.
fn boxes(field: &str) -> std::result::Result<Vec<DetectedBox>, String> {
    if field.is_empty() {
        return Ok(Vec::new());
    }
    let parsed = serde_json::from_str::<Value>(field)
        .or_else(|e| serde_json::from_str(&field.replace('\'', "\"")).map_err(|_| e));
    let parsed = parsed.map_err(|e| format!("its boxes are no JSON: {e}"))?;
    let Value::Array(list) = parsed else {
        return Err("its boxes are no list".to_owned());
    };
    list.iter().map(one_box).collect()
}

fn one_box(value: &Value) -> std::result::Result<DetectedBox, String> {
    let any = |names: &[&str]| names.iter().find_map(|name| value.get(*name));
    let finite = |value: &Value| {
        let number = value.as_f64().map(|number| number as f32);
        number.filter(|number| number.is_finite())
    };
    let corners = any(&["bbox", "box", "xyxy"]).and_then(Value::as_array);
    let corners: Option<Vec<f32>> = corners.and_then(|list| list.iter().map(finite).collect());
    let corners = corners
        .and_then(|list| <[f32; 4]>::try_from(list).ok())
        .ok_or_else(|| format!("a box needs `bbox` with four numbers x1, y1, x2, y2: {value}"))?;
    let score = match any(&["score", "confidence", "conf"]) {
        None => 1.0,
        Some(score) => finite(score).ok_or_else(|| format!("a score is no number: {value}"))?,
    };
    let label = any(&["label", "class", "category", "name"]);
    Ok(DetectedBox {
        corners,
        score,
        label: label.and_then(Value::as_str).unwrap_or("").to_lowercase(),
    })
}

/// The `most` boxes with the highest scores as numbers, eight each: x1/W, y1/H, x2/W, y2/H, score, and 1 for a person, a
/// vehicle or anything else. Zeros where there are fewer; of equal scores the first comes first.
fn as_columns(mut boxes: Vec<DetectedBox>, most: usize, [width, height]: [f32; 2]) -> Vec<f32> {
    boxes.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut numbers: Vec<f32> = boxes
        .iter()
        .take(most)
        .flat_map(|one| {
            let [x1, y1, x2, y2] = one.corners;
            let person = one.label == "person";
            let vehicle = VEHICLES.contains(&one.label.as_str());
            let is = |it: bool| f32::from(u8::from(it));
            [
                x1 / width,
                y1 / height,
                x2 / width,
                y2 / height,
                one.score,
                is(person),
                is(vehicle),
                is(!person && !vehicle),
            ]
        })
        .collect();
    numbers.resize(most * OF_BOX.len(), 0.0);
    numbers
}

/// Width and height of a picture, upright.
fn picture_size(scan: &mut Scan, position: usize) -> Result<[f32; 2]> {
    let size = scan
        .read(position)
        .and_then(|bytes| decode::dimensions(&bytes));
    let (width, height) = size.map_err(|reason| Error::Picture {
        path: scan.describe(position),
        reason,
    })?;
    Ok([width.max(1) as f32, height.max(1) as f32])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::raw::text_table::text_table;

    const JSON: &str = r#"[{"bbox": [10, 20, 30, 40], "score": 0.5, "label": "car"},
        {"bbox": [0, 0, 100, 50], "score": 0.9, "label": "Person"}, {"bbox": [1, 2, 3, 4], "score": 0.7, "label": "dog"}]"#;

    #[test]
    fn the_boxes_with_the_highest_scores_become_eight_numbers_each() {
        let found = boxes(JSON).unwrap();
        assert!(found[0].is_in_pixels());
        let numbers = as_columns(found.clone(), 4, [100.0, 200.0]);
        assert_eq!(numbers.len(), 32);
        assert_eq!(numbers[..8], [0.0, 0.0, 1.0, 0.25, 0.9, 1.0, 0.0, 0.0]);
        assert_eq!(numbers[8..16], [0.01, 0.01, 0.03, 0.02, 0.7, 0.0, 0.0, 1.0]);
        assert_eq!(numbers[16..24], [0.1, 0.1, 0.3, 0.2, 0.5, 0.0, 1.0, 0.0]);
        assert_eq!(numbers[24..], [0.0; 8]);
        assert_eq!(as_columns(found, 1, [100.0, 200.0]), numbers[..8]);
    }

    #[test]
    fn boxes_are_json_or_what_python_prints() {
        let python = "[{'bbox': [0.1, 0.2, 0.3, 0.4], 'score': 0.5, 'label': 'bus'}]";
        let found = boxes(python).unwrap();
        assert_eq!(
            (found[0].label.as_str(), found[0].is_in_pixels()),
            ("bus", false)
        );
        assert_eq!(boxes(""), Ok(vec![]));
        assert_eq!(boxes("[]"), Ok(vec![]));
        for (field, why) in [
            ("x", "no JSON"),
            ("{}", "no list"),
            ("[{}]", "four numbers"),
            ("[{\"bbox\": [1, 2, 3]}]", "four numbers"),
            (
                "[{\"bbox\": [1, 2, 3, 4], \"score\": \"x\"}]",
                "a score is no number",
            ),
        ] {
            assert!(boxes(field).unwrap_err().contains(why), "{field}");
        }
    }

    #[test]
    fn the_published_header_is_understood() {
        let text = "image_name,interesting/not interesting,num_person,num_vehicles,avg_person_conf,total_boxes,bounding_boxes\n\
            a,not interesting,0,1,0.0,1,\"[{\"\"bbox\"\": [1, 2, 3, 4], \"\"score\"\": 0.9, \"\"label\"\": \"\"car\"\"}]\"\n\
            b,interesting,1,0,0.5,1,[]\n";
        let table = text_table(text.as_bytes()).unwrap();
        let place = Place {
            image: 0,
            split: None,
            group: None,
        };
        let found = asked(&table, &[], place, &[]).unwrap();
        let expected = Asked::Yes {
            heading: "interesting/not interesting".to_owned(),
            classes: ["not interesting".to_owned(), "interesting".to_owned()],
        };
        assert_eq!(found, expected);
        assert_eq!(boxes_column(&table), Some(6));
        assert_eq!(
            numeric(&table, place, &["interesting/not interesting".to_owned()]),
            [
                "num_person",
                "num_vehicles",
                "avg_person_conf",
                "total_boxes"
            ]
        );
        let plain = |text: &str| asked(&text_table(text.as_bytes()).unwrap(), &[], place, &[]);
        assert_eq!(
            plain("image,good,n x\na,yes,1\nb,no,0\n")
                .unwrap()
                .headings(),
            ["good"]
        );
        assert!(
            plain("image,good,bad\na,yes,no\n")
                .unwrap_err()
                .0
                .contains("good, bad")
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[\\[\\]{}:,\"'a-z0-9.e-]{0,80}") {
            let _ = boxes(&text);
        }
    }
}
