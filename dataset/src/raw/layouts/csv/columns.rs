//! What the columns of a table mean. Pure: decided by headings and values alone.

use fovea_task::{Kind, MAX_CLASSES};

use super::super::labels::{in_order, split_called};
use super::super::named::NamedPictures;
use crate::raw::names::{first_few, folder_key};
use crate::raw::text_table::TextTable;

/// Headings of the column that names pictures, best first; they decide only between columns that name as many.
const IMAGES: [&str; 10] = [
    "filename",
    "file name",
    "image",
    "image name",
    "image id",
    "id code",
    "file",
    "name",
    "id",
    "path",
];

/// Headings of a column of class names, best first.
const CLASSES: [&str; 14] = [
    "label",
    "class",
    "diagnosis",
    "category",
    "target",
    "class name",
    "dx",
    "finding",
    "level",
    "grade",
    "dr grade",
    "stage",
    "labels",
    "type",
];

const SPLITS: [&str; 6] = ["split", "set", "subset", "partition", "dataset", "fold"];

const GROUPS: [&str; 10] = [
    "group",
    "patient",
    "patient id",
    "patientid",
    "subject",
    "subject id",
    "subjectid",
    "case",
    "case id",
    "eye id",
];

/// Headings of columns that count or number things: no labels, no measurements.
const NUMBERS_OF_ROWS: [&str; 5] = ["index", "id", "unnamed: 0", "unnamed", "no"];

/// Beginnings of headings of measurements, which are no labels even where all values are 0 and 1.
const MEASURED: [&str; 11] = [
    "num ", "number ", "n ", "count ", "avg ", "mean ", "total ", "sum ", "max ", "min ", "age",
];

/// Column names as positions in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Place {
    /// Of the pictures' names.
    pub image: usize,
    pub split: Option<usize>,
    pub group: Option<usize>,
}

/// Finds the columns that are no labels, in a table that names pictures. `image`: the heading that the user gave.
///
/// `None`: no column names a picture.
///
/// # Errors
/// The reason, when there is no column `image`, or it names none.
pub(in super::super) fn place(
    table: &TextTable,
    pictures: &NamedPictures,
    image: Option<&str>,
) -> Result<Option<Place>, String> {
    let image = match image {
        Some(name) => {
            let Some(column) = column_called(table, name) else {
                return Ok(None);
            };
            if count_named(table, column, pictures) == 0 {
                return Err(format!("column `{name}` names no picture"));
            }
            Some(column)
        }
        None => (0..table.columns.len())
            .map(|column| (count_named(table, column, pictures), column))
            .filter(|(named, _)| *named > 0)
            .max_by_key(|(named, column)| {
                let rank = rank_in(&IMAGES, &table.columns[*column]).unwrap_or(IMAGES.len());
                (*named, std::cmp::Reverse((rank, *column)))
            })
            .map(|(_, column)| column),
    };
    let Some(image) = image else {
        return Ok(None);
    };
    let others = || (0..table.columns.len()).filter(|column| *column != image);
    let is_split = |column: &usize| {
        let mut fields = filled(table, *column).peekable();
        fields.peek().is_some() && fields.all(|field| split_called(field).is_some())
    };
    let split = others()
        .filter(|column| rank_in(&SPLITS, &table.columns[*column]).is_some())
        .find(is_split);
    let named = others().filter_map(|c| Some((rank_in(&GROUPS, &table.columns[c])?, c)));
    // An `id` beside the pictures' names that several rows share is that of a patient.
    let ids = || others().find(|c| folder_key(&table.columns[*c]) == "id" && repeats(table, *c));
    let group = named.min().map(|(_, column)| column).or_else(ids);
    Ok(Some(Place {
        image,
        split,
        group,
    }))
}

/// What the label of a row is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Asked {
    /// A column of 0 and 1 per class: their headings.
    Bits(Vec<String>),
    /// One column of class names: its heading, and the classes in order.
    Names(String, Vec<String>),
    /// One column of yes and no, as words of any kind: two classes that exclude each other, `no` before `yes`.
    Yes {
        heading: String,
        classes: [String; 2],
    },
}

impl Asked {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Bits(_) => Kind::AnyOf,
            Self::Names(..) | Self::Yes { .. } => Kind::OneOf,
        }
    }

    /// The headings that a labelled table must have.
    pub fn headings(&self) -> Vec<&str> {
        match self {
            Self::Bits(headings) => headings.iter().map(String::as_str).collect(),
            Self::Names(heading, _) | Self::Yes { heading, .. } => vec![heading],
        }
    }
}

/// Which columns hold labels: those that the user gave, else all of 0 and 1, else one of class names. `others` are tables
/// with labels of the same columns.
///
/// # Errors
/// The reason, and what to do.
pub(in super::super) fn asked(
    table: &TextTable,
    others: &[&TextTable],
    place: Place,
    given: &[String],
) -> Result<Asked, (String, String)> {
    let tables = || std::iter::once(table).chain(others.iter().copied());
    let listed = || first_few(&table.columns, 12);
    let help = "name the columns with --labels A,B,C";
    let is_free = |column: &usize| {
        *column != place.image && Some(*column) != place.split && Some(*column) != place.group
    };
    let free: Vec<usize> = (0..table.columns.len()).filter(is_free).collect();
    let classes_of = |column: usize| {
        let heading = &table.columns[column];
        let fields = tables().flat_map(|table| {
            let column = column_called(table, heading);
            column.into_iter().flat_map(|column| filled(table, column))
        });
        in_order(fields.map(str::to_owned))
    };
    let is_bits = |column: &usize| {
        let mut fields = filled(table, *column).peekable();
        fields.peek().is_some() && fields.all(|field| bit(field).is_some())
    };
    let named = |column: usize| {
        let classes = classes_of(column);
        let heading = table.columns[column].clone();
        match classes.len() {
            0 | 1 => Err((
                format!(
                    "column `{heading}` has only the class {}",
                    first_few(&classes, 1)
                ),
                help.to_owned(),
            )),
            n if n > MAX_CLASSES => Err((
                format!("column `{heading}` has {n} classes, {MAX_CLASSES} are possible"),
                help.to_owned(),
            )),
            _ => Ok(Asked::Names(heading, classes)),
        }
    };
    if !given.is_empty() {
        let mut columns = Vec::new();
        for name in given {
            match column_called(table, name) {
                Some(column) => columns.push(column),
                None => {
                    return Err((
                        format!("has no column `{name}`, but {}", listed()),
                        "spell --labels as the first line of the table does".to_owned(),
                    ));
                }
            }
        }
        if columns.iter().all(is_bits) {
            return Ok(Asked::Bits(headings(table, &columns)));
        }
        return match columns[..] {
            [one] => named(one),
            _ => Err((
                format!(
                    "not all of the columns {} hold 0 and 1",
                    first_few(given, 12)
                ),
                "give --labels one column of class names, or several of 0 and 1".to_owned(),
            )),
        };
    }
    let bits: Vec<usize> = free
        .iter()
        .copied()
        .filter(|column| is_bits(column) && !is_measured(&table.columns[*column]))
        .collect();
    if !bits.is_empty() {
        return Ok(Asked::Bits(headings(table, &bits)));
    }
    let mut by_name: Vec<(usize, usize)> = free
        .iter()
        .filter_map(|column| Some((rank_in(&CLASSES, &table.columns[*column])?, *column)))
        .collect();
    by_name.sort_unstable();
    // Without a heading that says it, a column beside the names whose values repeat.
    let last_resort = match free[..] {
        [one] if repeats(table, one) => Some(one),
        _ => None,
    };
    match by_name.first().map(|(_, column)| *column).or(last_resort) {
        Some(column) => named(column),
        None => Err((
            format!(
                "no column holds labels (0 and 1, or names of classes) among {}",
                listed()
            ),
            help.to_owned(),
        )),
    }
}

/// 0 and 1, as tables spell them.
pub(in super::super) fn bit(field: &str) -> Option<bool> {
    match field.to_lowercase().as_str() {
        "0" | "0.0" | "false" | "no" => Some(false),
        "1" | "1.0" | "true" | "yes" => Some(true),
        _ => None,
    }
}

/// Yes and no as words: those of [`bit`], and the names of the classes `no` and `yes`.
pub(in super::super) fn answer(field: &str, classes: &[String; 2]) -> Option<bool> {
    let lower = field.to_lowercase();
    let is = |class: &String| lower == class.to_lowercase();
    match bit(field) {
        None if is(&classes[1]) => Some(true),
        None if is(&classes[0]) => Some(false),
        found => found,
    }
}

/// A finite number, with a point or a comma.
pub(in super::super) fn number(field: &str) -> Option<f32> {
    let parsed = field.parse::<f32>().ok();
    let parsed = parsed.or_else(|| field.replacen(',', ".", 1).parse().ok());
    parsed.filter(|number| number.is_finite())
}

/// The column of this name: spelled the same, else the only one that differs in case alone.
pub(in super::super) fn column_called(table: &TextTable, name: &str) -> Option<usize> {
    let exact = table.columns.iter().position(|column| column == name);
    exact.or_else(|| {
        let lower = name.to_lowercase();
        let alike = |column: &String| column.to_lowercase() == lower;
        let mut all = (0..table.columns.len()).filter(|column| alike(&table.columns[*column]));
        all.next().filter(|_| all.next().is_none())
    })
}

/// Whether the heading says that a column counts, measures or numbers.
pub(in super::super) fn is_measured(heading: &str) -> bool {
    let key = folder_key(heading);
    MEASURED.iter().any(|start| key.starts_with(start)) || is_row_number(heading)
}

/// Whether the heading says that a column numbers the rows.
pub(in super::super) fn is_row_number(heading: &str) -> bool {
    NUMBERS_OF_ROWS.contains(&folder_key(heading).as_str())
}

/// Fields of a column that are not empty.
pub(in super::super) fn filled(table: &TextTable, column: usize) -> impl Iterator<Item = &str> {
    let fields = table
        .rows
        .iter()
        .map(move |row| row.fields[column].as_str());
    fields.filter(|field| !field.is_empty())
}

/// How many different pictures a column names.
fn count_named(table: &TextTable, column: usize, pictures: &NamedPictures) -> usize {
    let fields: std::collections::HashSet<&str> = filled(table, column).collect();
    fields.iter().filter(|field| pictures.has(field)).count()
}

fn repeats(table: &TextTable, column: usize) -> bool {
    let distinct: std::collections::HashSet<&str> = filled(table, column).collect();
    distinct.len() < filled(table, column).count()
}

fn rank_in(words: &[&str], heading: &str) -> Option<usize> {
    let key = folder_key(heading);
    words.iter().position(|word| *word == key)
}

fn headings(table: &TextTable, columns: &[usize]) -> Vec<String> {
    let names = columns.iter().map(|column| table.columns[*column].clone());
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Entry;
    use crate::raw::text_table::text_table;
    use crate::raw::tree::Folders;

    fn table(text: &str) -> TextTable {
        text_table(text.as_bytes()).unwrap()
    }

    fn placed(table: &TextTable, image: Option<&str>) -> Result<Option<Place>, String> {
        let names = [
            "0_left", "0_right", "1_left", "1_right", "0", "1", "2", "a", "b",
        ];
        let entries: Vec<Entry> = names
            .map(|name| Entry::named(format!("images/{name}.jpg")))
            .into();
        let folders = Folders::new(&entries);
        place(table, &NamedPictures::below(&folders, ""), image)
    }

    fn found(text: &str, given: &[&str]) -> Result<Asked, String> {
        let table = table(text);
        let place = placed(&table, None).unwrap().unwrap();
        let given: Vec<String> = given.iter().map(|name| (*name).to_owned()).collect();
        asked(&table, &[], place, &given).map_err(|(reason, _)| reason)
    }

    fn bits(names: &[&str]) -> Result<Asked, String> {
        Ok(Asked::Bits(
            names.iter().map(|name| (*name).to_owned()).collect(),
        ))
    }

    const ODIR: &str = "ID,Patient Age,Left-Fundus,Right-Fundus,N,D,G,filepath,labels,filename\n\
        0,69,0_left.jpg,0_right.jpg,0,1,0,../x/0_left.jpg,['D'],0_left.jpg\n\
        0,69,0_left.jpg,0_right.jpg,0,1,0,../x/0_right.jpg,['D'],0_right.jpg\n\
        1,57,1_left.jpg,1_right.jpg,1,0,1,../x/1_left.jpg,['N'],1_left.jpg\n\
        1,57,1_left.jpg,1_right.jpg,1,0,1,../x/1_right.jpg,['N'],1_right.jpg\n";

    #[test]
    fn the_tables_of_odir_are_understood_as_they_come() {
        let place = placed(&table(ODIR), None).unwrap().unwrap();
        assert_eq!((place.image, place.group, place.split), (9, Some(0), None));
        assert_eq!(found(ODIR, &[]), bits(&["N", "D", "G"]));
        assert_eq!(found(ODIR, &["G", "d"]), bits(&["G", "D"]));
        let small = "id,D,G,A\n0_left.jpg,1,0,0\n1_left.jpg,0,0,0\n";
        assert_eq!(placed(&table(small), None).unwrap().unwrap().image, 0);
        assert_eq!(found(small, &[]), bits(&["D", "G", "A"]));
    }

    #[test]
    fn pictures_that_are_numbered_are_not_taken_for_labels() {
        let text = "id,label\n0,1\n1,0\n2,1\n";
        assert_eq!(placed(&table(text), None).unwrap().unwrap().image, 0);
        assert_eq!(found(text, &[]), bits(&["label"]));
    }

    #[test]
    fn one_column_of_names_excludes_each_other() {
        let names = |heading: &str, classes: &[&str]| {
            let classes = classes.iter().map(|class| (*class).to_owned());
            Ok(Asked::Names(heading.to_owned(), classes.collect()))
        };
        let text = "image,sex,dx,patient\na,m,nevus,1\nb,f,melanoma,1\n0,f,nevus,2\n";
        assert_eq!(found(text, &[]), names("dx", &["melanoma", "nevus"]));
        assert_eq!(placed(&table(text), None).unwrap().unwrap().group, Some(3));
        assert_eq!(found(text, &["sex"]), names("sex", &["f", "m"]));
        let levels = "image,level\na,10\nb,2\n0,0\n";
        assert_eq!(found(levels, &[]), names("level", &["0", "2", "10"]));
        let plain = "a.jpg,cat\nb.jpg,dog\n0.jpg,cat\n";
        assert_eq!(found(plain, &[]), names("column 2", &["cat", "dog"]));
    }

    #[test]
    fn what_holds_no_labels_is_told() {
        let text = "image,age,sex\na,50,m\nb,61,f\n";
        let none = found(text, &[]).unwrap_err();
        assert!(
            none.starts_with("no column holds labels") && none.ends_with("image, age, sex"),
            "{none}"
        );
        assert!(
            found(text, &["D"])
                .unwrap_err()
                .contains("has no column `D`")
        );
        assert!(
            found(text, &["age", "sex"])
                .unwrap_err()
                .contains("hold 0 and 1")
        );
        assert!(
            found("image,label\na,x\nb,x\n", &[])
                .unwrap_err()
                .contains("only the class x")
        );
        assert_eq!(placed(&table("x,y\nq,w\n"), None), Ok(None));
        assert_eq!(placed(&table(text), Some("file")), Ok(None));
        assert!(
            placed(&table(text), Some("sex"))
                .unwrap_err()
                .contains("names no picture")
        );
        assert_eq!(
            placed(&table(text), Some("IMAGE")).unwrap().unwrap().image,
            0
        );
    }

    proptest::proptest! {
        /// Tables of a few kinds of fields: what is decided fits the table, and nothing panics.
        #[test]
        fn any_table_is_decided_or_refused(
            rows in proptest::collection::vec(proptest::collection::vec("(0|1|0_left.jpg|a|b|train|x,y|nan|-1e9|[ -~]{0,4})", 1..5), 0..9),
            given in proptest::collection::vec("(x|column 1|0|a|D)", 0..3),
        ) {
            let text: String = rows.iter().map(|row| row.join(";") + "\n").collect();
            if let Ok(table) = text_table(text.as_bytes())
                && let Ok(Some(place)) = placed(&table, None)
            {
                proptest::prop_assert!(place.image < table.columns.len());
                match asked(&table, &[&table], place, &given) {
                    Ok(asked) => {
                        for heading in asked.headings() {
                            proptest::prop_assert!(column_called(&table, heading).is_some());
                        }
                    }
                    Err((reason, help)) => proptest::prop_assert!(!reason.is_empty() && !help.is_empty()),
                }
            }
        }
    }

    #[test]
    fn columns_of_splits_are_those_whose_values_say_it() {
        let text = "image,set,fold,label\na,train,1,x\nb,valid,2,y\n0,test,1,x\n";
        assert_eq!(placed(&table(text), None).unwrap().unwrap().split, Some(1));
        assert_eq!(number("0,92"), Some(0.92));
        assert_eq!(
            (number("nan"), number("1e3"), number("x")),
            (None, Some(1000.0), None)
        );
    }
}
