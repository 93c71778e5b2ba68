//! Errors of calls into this crate. Kernels never panic on bad arguments.

/// A call that a kernel refused. The first line gives the problem, the limit and the actual number; the second line
/// starts with `  help: ` and says what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A buffer does not have the length its shape asks for.
    #[error(
        "{what} has {actual} elements, its shape needs {expected}\n  help: {what} must hold {shape}"
    )]
    Length {
        /// Name of the buffer, as in the function's signature.
        what: &'static str,
        /// The shape in words, e.g. `[n, size, size, 3]`.
        shape: &'static str,
        /// Elements that the shape asks for.
        expected: usize,
        /// Elements that were passed.
        actual: usize,
    },
    /// A number outside of the range that the kernel can compute with.
    #[error("{what} is {actual}, the limit is {limit}\n  help: {help}")]
    Argument {
        /// Name of the argument, as in the function's signature.
        what: &'static str,
        /// The allowed range in words, e.g. `1 or more`.
        limit: &'static str,
        /// The value that was passed, printed.
        actual: String,
        /// What the caller should do.
        help: &'static str,
    },
    /// A [`crate::CropSpec`] names an image that the caller did not pass.
    #[error(
        "crop of sample {sample_id} asks for image {image}, but only {images} images were passed\n  \
         help: CropSpec::image counts from 0 within the `images` of the same call"
    )]
    ImageIndex {
        /// The sample whose crop failed.
        sample_id: u64,
        /// The image index in its [`crate::CropSpec`].
        image: usize,
        /// How many images were passed.
        images: usize,
    },
    /// A [`crate::CropSpec`] does not lie inside its image.
    #[error(
        "crop of sample {sample_id} covers rows {y}..{y}+{size} and columns {x}..{x}+{size}, but image \
         {image} has {height} rows and {width} columns\n  help: the grid cell must lie inside the \
         image; check the patch size and the grid that the dataset was prepared with"
    )]
    CropOutside {
        /// The sample whose crop failed.
        sample_id: u64,
        /// The image index in its [`crate::CropSpec`].
        image: usize,
        /// Top row of the crop in its image, pixels.
        y: u32,
        /// Left column of the crop in its image, pixels.
        x: u32,
        /// Side of the crop, pixels.
        size: usize,
        /// Height of the image, pixels.
        height: usize,
        /// Width of the image, pixels.
        width: usize,
    },
    /// The element count of a shape does not fit in `usize`.
    #[error("the shape of {what} overflows: {shape}\n  help: use smaller sizes")]
    Overflow {
        /// Name of the buffer.
        what: &'static str,
        /// The numbers of the shape, printed.
        shape: String,
    },
}

/// Result of a call into this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Returns an error for a buffer of another length than its shape asks for.
pub(crate) fn check_len(
    what: &'static str,
    shape: &'static str,
    actual: usize,
    expected: usize,
) -> Result<()> {
    if actual == expected {
        Ok(())
    } else {
        Err(Error::Length {
            what,
            shape,
            expected,
            actual,
        })
    }
}

/// Product of a shape; an error when it does not fit in `usize`.
pub(crate) fn checked_elements(what: &'static str, shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &n| product.checked_mul(n))
        .ok_or_else(|| Error::Overflow {
            what,
            shape: format!("{shape:?}"),
        })
}
