//! Pictures: what a file shows, as its author meant it, and where in it the eye is.
//!
//! [`decode`] turns a file's bytes into upright RGB or into a mask; [`fov`] finds the disc of a fundus photograph;
//! [`resample`] scales a square of it to the working size; [`pillow`] scales a whole picture, with Pillow's bits; [`font`] labels pictures. Everything here is
//! a pure function of bytes: this room opens no file and knows no dataset.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "in a test a panic is the message")
)]

pub mod decode;
pub mod font;
pub mod fov;
pub mod pillow;
pub mod resample;
mod wide;
