//! Searching the memory of a process for what must not be there.

use anyhow::Context as _;
use rustix::process::Pid;
use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
};

/// Bytes looked at together.
const STEP: usize = 64 << 10;

/// How often `wanted` stands in the writable memory of a process, in this order of bytes or in the other: big numbers are
/// kept least significant part first.
///
/// # Errors
/// The process is gone, or is not ours to read.
pub fn occurrences(pid: Pid, wanted: &[u8]) -> anyhow::Result<usize> {
    let pid = pid.as_raw_nonzero();
    let reversed: Vec<u8> = wanted.iter().rev().copied().collect();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut found = 0;
    let zeroes = vec![0; STEP + wanted.len().saturating_sub(1)];
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = fields.next().zip(fields.next()).context("a line of `maps` is malformed")?;
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').context("a range of `maps` is malformed")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        for start in (from..to).step_by(STEP) {
            let mut chunk = vec![0; usize::try_from(to - start)?.min(zeroes.len())];
            // Some of what is mapped cannot be read: it was unmapped meanwhile, or belongs to the kernel.
            if memory.seek(SeekFrom::Start(start)).is_err() || memory.read_exact(&mut chunk).is_err() {
                break;
            }
            // What was never written reads as zeroes: most of what an allocator reserves.
            if zeroes.starts_with(&chunk) {
                continue;
            }
            let times = |bytes: &[u8]| chunk.windows(bytes.len()).filter(|w| *w == bytes).count();
            found += times(wanted) + times(&reversed);
        }
    }
    Ok(found)
}
