//! What the library works in.

use std::fmt;
use zeroize::{DefaultIsZeroes, Zeroize as _};

/// A line of the cache, which is a vector of the library.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([u64; 8]);

impl DefaultIsZeroes for Line {}

/// Memory for the numbers between: a thread's own, erased after each use.
#[derive(Default)]
pub struct Scratch(Vec<Line>);

impl Scratch {
    /// Makes room for as many bytes, and answers where they begin.
    pub(crate) fn room(&mut self, len: usize) -> *mut u8 {
        let lines = len.div_ceil(size_of::<Line>());
        if self.0.len() < lines {
            // Nothing is copied that would have to be erased: it is erased after each use.
            self.0.resize(lines, Line::default());
        }
        self.0.as_mut_ptr().cast()
    }

    pub(crate) fn erase(&mut self) {
        self.0.as_mut_slice().zeroize();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.erase();
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch(..)")
    }
}
