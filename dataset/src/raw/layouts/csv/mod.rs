//! Labels of whole images in tables: CSV or TSV files beside the pictures, or one for each split.
//!
//! This file reads and joins; [`columns`] decides what the columns mean.

pub(super) mod columns;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fovea_task::{Label, Task};

use super::labels::{image_task, keep_published, split_called};
use super::named::{NamedPictures, distinct_ids};
use crate::raw::layout::Layout;
use crate::raw::names::{counted, first_few, folder_key, is_picture, stem};
use crate::raw::scan::Scan;
use crate::raw::set::{Evidence, RawImage, RawSet};
use crate::raw::text_table::{TextRow, TextTable, text_table};
use crate::raw::tree::{Folders, is_below, last, parent};
use crate::{Crop, Error, Result, Split};
use columns::{Asked, Place, bit, column_called};

/// Pictures, and tables with their labels.
pub struct Csv;

/// At most this many names stand in one message.
const NAMES: usize = 5;

impl Layout for Csv {
    fn name(&self) -> &'static str {
        "csv"
    }

    fn looks_like(&self) -> &'static str {
        "pictures, and beside them a table (csv, tsv) whose lines name them, with columns of 0 and 1, or one of class names"
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
        !super::boxes::has_boxes(scan, root)
    }

    fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet> {
        let given = scan.options().labels.clone();
        let joined = join(scan, root, &|table, others, place| {
            columns::asked(table, others, place, &given)
        })?;
        let mut images: Vec<RawImage> =
            joined.images.into_iter().map(|(image, ..)| image).collect();
        keep_others(scan, &mut images);
        distinct_ids(scan.folders(), root, &mut images);
        Ok(RawSet {
            task: joined.task,
            images,
        })
    }
}

/// Whether `folder` holds tables and pictures, and no folder above it does.
pub(super) fn holds_tables(folders: &Folders, folder: &str) -> bool {
    let holds = |folder: &str| {
        !tables(folders, folder).is_empty()
            && folders.all().any(|below| {
                (below == folder || is_below(below, folder)) && has_pictures(folders, below)
            })
    };
    let mut above = folder;
    while !above.is_empty() {
        above = parent(above);
        if holds(above) {
            return false;
        }
    }
    holds(folder)
}

fn has_pictures(folders: &Folders, folder: &str) -> bool {
    let mut files = folders.files(folder).iter();
    files.any(|position| is_picture(last(folders.name(*position))))
}

/// The tables in `root`, and in folders in it that hold no pictures.
pub(super) fn tables(folders: &Folders, root: &str) -> Vec<usize> {
    let is_table = |position: &usize| {
        let name = last(folders.name(*position)).to_lowercase();
        [".csv", ".tsv", ".tab"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let beside = folders
        .children(root)
        .filter(|child| !has_pictures(folders, child));
    std::iter::once(root)
        .chain(beside)
        .flat_map(|folder| folders.files(folder).iter().copied())
        .filter(is_table)
        .collect()
}

/// A table whose lines name pictures.
pub(super) struct NamedTable {
    pub position: usize,
    pub table: TextTable,
    pub place: Place,
    /// The split that it is called by.
    split: Option<Split>,
    /// A form to fill in: its labels mean nothing.
    is_form: bool,
}

/// Images as tables label them.
pub(super) struct Joined {
    pub task: Task,
    pub tables: Vec<NamedTable>,
    /// Each with its table and row.
    pub images: Vec<(RawImage, usize, usize)>,
}

type Ask<'a> =
    &'a dyn Fn(&TextTable, &[&TextTable], Place) -> std::result::Result<Asked, (String, String)>;

/// Reads the tables in `root`, and joins their rows to pictures; `ask` decides what the labels are.
pub(super) fn join(scan: &mut Scan, root: &str, ask: Ask) -> Result<Joined> {
    let pictures = NamedPictures::below(scan.folders(), root);
    let tables = named_tables(scan, root, &pictures)?;
    let asked = decide(scan, &tables, ask)?;
    let classes = match &asked {
        Asked::Bits(names) | Asked::Names(_, names) => names.clone(),
        Asked::Yes { classes, .. } => classes.to_vec(),
    };
    let task = image_task(asked.kind(), &classes)
        .map_err(|e| scan.error(e, "name the columns of labels with --labels A,B,C"))?;
    let mut found: BTreeMap<usize, (RawImage, usize, usize)> = BTreeMap::new();
    for (number, named) in tables.iter().enumerate() {
        let is_labelled = labels_of(scan, named, &asked)?;
        let rows = &named.table.rows;
        let fields: Vec<&str> = rows
            .iter()
            .map(|row| row.fields[named.place.image].as_str())
            .collect();
        let mut lacking: Vec<&str> = Vec::new();
        for (at, position) in pictures
            .choose(&fields, &called(scan.name(named.position)))
            .into_iter()
            .enumerate()
        {
            let row = &rows[at];
            let Some(position) = position else {
                lacking.push(fields[at]);
                continue;
            };
            let bad = |reason: String| Error::Csv {
                path: scan.describe(named.position),
                line: row.line,
                reason,
            };
            let label = match is_labelled {
                true => label_of(&asked, &named.table, row).map_err(&bad)?,
                false => Label::UNKNOWN,
            };
            let image = image(scan, position, label, named, row);
            match found.get(&position) {
                Some((other, ..)) if other.labels == image.labels || image.labels.is_empty() => {}
                Some((other, ..)) if !other.labels.is_empty() => {
                    return Err(bad(format!("`{}` has two labels", fields[at])));
                }
                _ => _ = found.insert(position, (image, number, at)),
            }
        }
        tell_lacking(scan, named, &lacking);
        scan.has_read(named.position);
    }
    let mut images: Vec<_> = found.into_values().collect();
    let mut splits: Vec<&mut Option<Split>> = images
        .iter_mut()
        .filter(|(image, ..)| !image.labels.is_empty())
        .map(|(image, ..)| &mut image.split)
        .collect();
    keep_published(&mut splits);
    Ok(Joined {
        task,
        tables,
        images,
    })
}

/// The tables whose lines name pictures; those that say what to train on first.
fn named_tables(scan: &mut Scan, root: &str, pictures: &NamedPictures) -> Result<Vec<NamedTable>> {
    let column = scan.options().image_column.clone();
    let mut named = Vec::new();
    let mut nameless = Vec::new();
    for position in tables(scan.folders(), root) {
        let table = read_table(scan, position, pictures)?;
        let place = columns::place(&table, pictures, column.as_deref());
        let name = scan.name(position);
        let place = place.map_err(|reason| {
            let help = "give --image-column the column that holds the names of the pictures";
            scan.error(format!("{name}: {reason}"), help)
        })?;
        let Some(place) = place else {
            scan.pass_over(position, "a table without a column that names pictures");
            nameless.push(format!("{name} ({})", first_few(&table.columns, NAMES)));
            continue;
        };
        let key = folder_key(stem(last(name)));
        named.push(NamedTable {
            position,
            table,
            place,
            split: split_called(&key),
            is_form: key.split(' ').any(|word| word == "submission"),
        });
    }
    if named.is_empty() {
        let problem = match column {
            Some(column) => format!(
                "no table has a column `{column}`: {}",
                first_few(&nameless, NAMES)
            ),
            None => format!(
                "no column of its tables names pictures that are there: {}",
                first_few(&nameless, NAMES)
            ),
        };
        let help = "give the folder that holds both the tables and the pictures, or insist on another layout with --layout";
        return Err(scan.error(problem, help));
    }
    named.sort_by_key(|table| {
        (
            table.is_form,
            table.split != Some(Split::Train),
            table.position,
        )
    });
    Ok(named)
}

/// Reads a table; headings that name a picture are a row.
pub(super) fn read_table(
    scan: &mut Scan,
    position: usize,
    pictures: &NamedPictures,
) -> Result<TextTable> {
    let path = scan.describe(position);
    let bad = |(line, reason): (u64, String)| Error::Csv {
        path: path.clone(),
        line,
        reason,
    };
    let bytes = scan.read(position).map_err(|reason| bad((1, reason)))?;
    let table = text_table(&bytes).map_err(bad)?;
    Ok(match table.columns.iter().any(|name| pictures.has(name)) {
        true => table.without_headings(),
        false => table,
    })
}

/// What the labels are, by the first table that has some.
fn decide(scan: &Scan, tables: &[NamedTable], ask: Ask) -> Result<Asked> {
    let mut first = None;
    for (number, named) in tables
        .iter()
        .enumerate()
        .filter(|(_, named)| !named.is_form)
    {
        let others: Vec<&TextTable> = tables
            .iter()
            .enumerate()
            .filter(|(other, table)| *other != number && !table.is_form)
            .map(|(_, named)| &named.table)
            .collect();
        match ask(&named.table, &others, named.place) {
            Ok(asked) => return Ok(asked),
            Err(why) => _ = first.get_or_insert((named.position, why)),
        }
    }
    let (name, (reason, help)) = match first {
        Some((position, why)) => (scan.name(position), why),
        None => (
            scan.name(tables[0].position),
            (
                "is a form for a submission, and there is no other table".to_owned(),
                "add the table that holds the labels".to_owned(),
            ),
        ),
    };
    Err(scan.error(format!("{name}: {reason}"), &help))
}

/// Whether a table labels its rows.
///
/// # Errors
/// It has some of the columns of labels only.
fn labels_of(scan: &Scan, named: &NamedTable, asked: &Asked) -> Result<bool> {
    if named.is_form {
        return Ok(false);
    }
    let wanted = asked.headings();
    let (there, lacking): (Vec<&str>, Vec<&str>) = wanted
        .iter()
        .partition(|name| column_called(&named.table, name).is_some());
    if !there.is_empty() && !lacking.is_empty() {
        return Err(scan.error(
            format!(
                "{} has the columns {} of another table, but not {}",
                scan.name(named.position),
                first_few(&there, NAMES),
                first_few(&lacking, NAMES)
            ),
            "give all tables the same columns of labels, or choose them with --labels A,B,C",
        ));
    }
    Ok(lacking.is_empty())
}

/// The label of a row; unknown where a field of it is empty.
fn label_of(asked: &Asked, table: &TextTable, row: &TextRow) -> std::result::Result<Label, String> {
    let field = |heading: &str| match column_called(table, heading) {
        Some(column) => row.fields[column].as_str(),
        None => "",
    };
    match asked {
        Asked::Bits(headings) => {
            let mut label = 0u64;
            for (class, heading) in headings.iter().enumerate() {
                match field(heading) {
                    "" => return Ok(Label::UNKNOWN),
                    field => {
                        let bit = bit(field);
                        let bit = bit.ok_or(format!("`{field}` in `{heading}` is not 0 or 1"))?;
                        label |= u64::from(bit) << class;
                    }
                }
            }
            Ok(Label(label))
        }
        Asked::Names(heading, classes) => match field(heading) {
            "" => Ok(Label::UNKNOWN),
            field => match classes.iter().position(|class| class == field) {
                Some(class) => Ok(Label(class as u64)),
                None => Err(format!("`{field}` in `{heading}` is no class")),
            },
        },
        Asked::Yes { heading, classes } => match field(heading) {
            "" => Ok(Label::UNKNOWN),
            field => match columns::answer(field, classes) {
                Some(yes) => Ok(Label(u64::from(yes))),
                None => Err(format!(
                    "`{field}` in `{heading}` is neither `{}` nor `{}`",
                    classes[1], classes[0]
                )),
            },
        },
    }
}

/// The image of a row; one without a label belongs to no split.
fn image(
    scan: &Scan,
    position: usize,
    label: Label,
    named: &NamedTable,
    row: &TextRow,
) -> RawImage {
    let field = |column: Option<usize>| {
        let field = row.fields[column?].as_str();
        (!field.is_empty()).then_some(field)
    };
    let split = match named.place.split {
        Some(_) => field(named.place.split).and_then(split_called),
        None => named.split,
    };
    RawImage {
        id: stem(last(scan.name(position))).to_owned(),
        image: position,
        labels: match label.is_known() {
            true => vec![(0, label)],
            false => Vec::new(),
        },
        cells: Evidence::None,
        grade: None,
        split: split.filter(|_| label.is_known()),
        group: field(named.place.group).map(str::to_owned),
        columns: Vec::new(),
    }
}

/// Keys that the folder of a table's pictures may have: `train` of `train.csv`, `onsite test` of
/// `onsite_test_submission.csv`.
fn called(table: &str) -> Vec<String> {
    let key = folder_key(stem(last(table)));
    let words = key
        .split(' ')
        .filter(|word| !["submission", "labels", "label"].contains(word));
    let bare = words.collect::<Vec<_>>().join(" ");
    vec![key, bare]
}

fn tell_lacking(scan: &mut Scan, named: &NamedTable, lacking: &[&str]) {
    if lacking.is_empty() {
        return;
    }
    let name = scan.name(named.position);
    scan.warn(format!(
        "{name}: {} of the {} rows name no picture that is there: {}",
        lacking.len(),
        named.table.rows.len(),
        first_few(lacking, NAMES)
    ));
}

/// Keeps the pictures beside the named ones that no row names: without a label, for `predict`.
fn keep_others(scan: &mut Scan, images: &mut Vec<RawImage>) {
    let named: BTreeSet<usize> = images.iter().map(|image| image.image).collect();
    let folders: BTreeSet<&str> = named.iter().map(|at| parent(scan.name(*at))).collect();
    let mut others: HashMap<usize, &str> = HashMap::new();
    for folder in folders {
        for picture in scan.pictures(folder) {
            if !named.contains(&picture.position) {
                others.insert(picture.position, picture.stem);
                images.push(picture.image());
            }
        }
    }
    if !others.is_empty() {
        let mut names: Vec<&str> = others.values().copied().collect();
        names.sort_unstable();
        scan.warn(format!(
            "{} in no table, kept without a label: {}",
            match names.len() {
                1 => "1 picture is".to_owned(),
                n => format!("{} are", counted(n, "picture")),
            },
            first_few(&names, NAMES)
        ));
    }
}
