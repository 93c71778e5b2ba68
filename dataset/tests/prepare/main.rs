//! `prepare` from the outside: layouts, damaged input, interruption, and what a prepared dataset returns.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

mod archives;
mod damage;
mod idrid;
mod labels;
mod layouts;
mod masks;
mod raw;
mod restart;
mod sources;
mod splits;
mod tasks;
