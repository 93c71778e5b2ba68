//! From raw fundus datasets to samples.
//!
//! [`prepare`] turns a raw layout (a directory or a zip) into a directory of shards and a manifest; [`Dataset`] opens
//! that directory, and reads it from a copy on the node's own disk once [`stage`](stage::stage) has made one;
//! [`prepare_photo`] brings one camera photograph to the same form; [`mosaic`] draws the contents.
//! This crate knows pixels, labels and files, but not models, ranks or the order of samples.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "in a test a panic is the message")
)]

mod cells;
mod dataset;
mod error;
mod framing;
mod groups;
mod labels;
mod list;
mod manifest;
mod mosaic;
mod oddities;
mod pairs;
mod photo;
mod prepare;
mod progress;
pub mod raw;
mod shard;
mod source;
mod split;
pub mod stage;
mod table;

pub use cells::{BLACK_FRACTION, BLACK_LEVEL, MAX_PATCH, MAX_PATCH_CLASSES, MAX_SIZE, MIN_SIZE};
pub use dataset::{Dataset, ImageView};
pub use error::{BadFile, Error, Result};
pub use framing::{Crop, Fit, Framing};
pub use groups::stratify_groups;
pub use list::{PhotoFile, holds_photos, list_photos};
pub use manifest::{
    FORMAT, FORMAT_VERSION, ImageEntry, MANIFEST_FILE, Manifest, Recipe, ShardEntry, SplitCounts,
};
pub use mosaic::{MosaicOptions, mosaic, mosaic_photos};
pub use oddities::oddities;
pub use photo::{Photo, frame_photo, load_photo, prepare_photo};
pub use prepare::{MAX_BAD_FILES, PrepareOptions, prepare};
pub use progress::{Bar, ProgressListener, Silent};
pub use raw::{LAYOUTS, Layout, LayoutChoice, TableOptions};
pub use split::{SHARES, Split, stratify};
pub use table::LabelTable;
