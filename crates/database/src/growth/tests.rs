//! A growth is cut at each of its writes, also with writes that overtook others, and its repair is cut again: what is in the file system is there.

use super::*;
use crate::{command::run, filesystem::prepare, geometry::Geometry};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

const MIB: u64 = 1 << 20;
/// Large enough for a second superblock.
const BEFORE: u64 = 192 * MIB;
const AFTER: u64 = 448 * MIB;

/// One call of a program on the image; none is a flush.
type Write = Option<(u64, Vec<u8>)>;

struct Lab {
    dir: tempfile::TempDir,
    files: BTreeMap<String, Vec<u8>>,
    /// A fixed sequence: a failure can be seen again.
    chance: u64,
}

impl Lab {
    /// A file system with files, on an image that has grown.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut lab = Self { dir, files: BTreeMap::new(), chance: 0x9e37_79b9_7f4a_7c15 };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/growth/recorder.c");
        run(
            "cc",
            &["-shared", "-fPIC", "-O1", "-o", &lab.path("recorder.so"), source.to_str().unwrap(), "-ldl"],
        )
        .unwrap();
        File::create(lab.path("whole")).unwrap().set_len(BEFORE).unwrap();
        prepare(&lab.path("whole"), &lab.place()).unwrap();
        let mut commands = "mkdir base\n".to_owned();
        for n in 0..60 {
            let name = format!("{}file-{n}", if n % 3 == 0 { "base/" } else { "" });
            let content: Vec<u8> =
                (0..lab.below(200_000)).map(|i| (i % 251) as u8 ^ u8::try_from(n).unwrap()).collect();
            let flat = lab.path(&format!("content-{n}"));
            fs::write(&flat, &content).unwrap();
            commands += &format!("write {flat} {name}\n");
            lab.files.insert(name, content);
        }
        fs::write(lab.path("commands"), commands).unwrap();
        run("debugfs", &["-w", "-f", &lab.path("commands"), &lab.path("whole")]).unwrap();
        File::options().write(true).open(lab.path("whole")).unwrap().set_len(AFTER).unwrap();
        lab
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Where it would be mounted.
    fn place(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn mark(&self) -> Mark {
        Mark::growing(&self.place())
    }

    fn below(&mut self, n: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % n
    }

    /// Runs a program on a copy of `image`, and answers what it wrote; none if it failed.
    fn record(&self, image: &str, program: &str, arguments: &[&str]) -> Option<Vec<Write>> {
        self.copy(image, "recorded");
        _ = fs::remove_file(self.path("record"));
        let output = Command::new(program)
            .args(arguments)
            .env("LD_PRELOAD", self.path("recorder.so"))
            .env("RECORDED", self.path("recorded"))
            .env("RECORD", self.path("record"))
            .env("E2FSCK_CONFIG", self.mark().path())
            .output()
            .unwrap();
        if !output.status.code().is_some_and(|c| CLEAN.contains(&c)) {
            return None;
        }
        let mut record = File::open(self.path("record")).unwrap();
        let mut writes = Vec::new();
        let mut head = [0; 24];
        while record.read_exact(&mut head).is_ok() {
            let [kind, at, len] =
                [0, 8, 16].map(|n| u64::from_le_bytes(*head[n..].first_chunk::<8>().unwrap()));
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            match u8::try_from(kind).unwrap() {
                b'W' => record.read_exact(&mut bytes).unwrap(),
                b'Z' => {}
                _ => {
                    writes.push(None);
                    continue;
                }
            }
            writes.push(Some((at, bytes)));
        }
        Some(writes)
    }

    fn copy(&self, from: &str, to: &str) {
        _ = run("cp", &["--sparse=always", &self.path(from), &self.path(to)]).unwrap();
    }

    /// Makes `to` of `from` and some of the writes.
    fn cut<'a>(&self, from: &str, to: &str, writes: impl Iterator<Item = &'a Write>) {
        self.copy(from, to);
        let image = File::options().write(true).open(self.path(to)).unwrap();
        for (at, bytes) in writes.flatten() {
            image.write_all_at(bytes, *at).unwrap();
        }
    }

    /// Some of the writes, as a cut leaves them: all before a flush, and of those after it any.
    fn overtaken<'a>(&mut self, writes: &'a [Write]) -> Vec<&'a Write> {
        let end = usize::try_from(self.below(writes.len() as u64 + 1)).unwrap();
        let flushed = writes[..end].iter().rposition(Option::is_none).unwrap_or(0);
        let next = writes[end..].iter().position(Option::is_none).map_or(writes.len(), |n| end + n);
        let often = self.below(4) + 1;
        let (before, after) = (writes[..flushed].iter(), writes[flushed..next].iter());
        before.chain(after.filter(|_| self.below(5) < often)).collect()
    }

    /// The file system is whole, has grown, and holds what it held.
    fn is_whole(&self, image: &str) -> Result<(), String> {
        prepare(&self.path(image), &self.place()).map_err(|e| e.to_string())?;
        if self.mark().is_set() {
            return Err("the mark stays".to_owned());
        }
        run("e2fsck", &["-f", "-n", &self.path(image)]).map_err(|e| e.to_string())?;
        let mut head = vec![0; 4096];
        File::open(self.path(image)).unwrap().read_exact(&mut head).unwrap();
        if Geometry::read(&head).map(|g| g.blocks) != Some(AFTER / 4096) {
            return Err("it has not grown".to_owned());
        }
        let out = self.path("found");
        _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).unwrap();
        run("debugfs", &["-R", &format!("rdump / {out}"), &self.path(image)]).map_err(|e| e.to_string())?;
        for (name, content) in &self.files {
            if fs::read(Path::new(&out).join(name)).ok().as_ref() != Some(content) {
                return Err(format!("{name} is not what it was"));
            }
        }
        Ok(())
    }
}

#[test]
fn a_growth_that_is_cut_short_loses_nothing() {
    let mut lab = Lab::new();
    let (recorded, blocks) = (lab.path("recorded"), (AFTER / 4096).to_string());
    let growth = lab.record("whole", "resize2fs", &[&recorded, &blocks]).unwrap();
    assert!(growth.len() > 40, "{} writes", growth.len());
    for end in 0..=growth.len() {
        lab.cut("whole", "cut", growth[..end].iter());
        lab.mark().set(FINDINGS).unwrap();
        lab.is_whole("cut").unwrap_or_else(|e| panic!("after {end} writes: {e}"));
    }
    let mut repairs_cut = 0;
    for round in 0..80 {
        let some = lab.overtaken(&growth);
        lab.cut("whole", "cut", some.into_iter());
        lab.mark().set(FINDINGS).unwrap();
        // The repair is cut as well, where there is one.
        if round % 2 == 0
            && let Some(mended) = lab.record("cut", "e2fsck", &["-f", "-p", &recorded])
        {
            let some = lab.overtaken(&mended);
            lab.copy("cut", "once");
            lab.cut("once", "cut", some.into_iter());
            repairs_cut += 1;
        }
        lab.is_whole("cut").unwrap_or_else(|e| panic!("round {round}: {e}"));
    }
    assert!(repairs_cut > 10, "{repairs_cut}");
}

/// A making that is cut short, too: it is made anew, also where it looks like something else by then.
#[test]
fn a_making_that_is_cut_short_is_done_again() {
    let mut lab = Lab::new();
    let recorded = lab.path("recorded");
    File::create(lab.path("empty")).unwrap().set_len(AFTER).unwrap();
    let making = lab.record("empty", "mkfs.ext4", &["-F", "-q", "-b", "4096", &recorded]).unwrap();
    lab.files.clear();
    for round in 0..8 {
        let some = lab.overtaken(&making);
        lab.cut("empty", "cut", some.into_iter());
        Mark::making(&lab.place()).set("").unwrap();
        lab.is_whole("cut").unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert!(!Mark::making(&lab.place()).is_set());
    }
}

/// Without the mark nothing but what is safe in any file system is mended.
#[test]
fn what_no_growth_left_is_not_mended_in_silence() {
    let lab = Lab::new();
    // The resize inode's own block.
    let commands = "set_inode_field <7> block[DIND] 0\nset_super_value state 2\n";
    fs::write(lab.path("commands"), commands).unwrap();
    run("debugfs", &["-w", "-f", &lab.path("commands"), &lab.path("whole")]).unwrap();
    let why = prepare(&lab.path("whole"), &lab.place()).unwrap_err().to_string();
    assert!(why.contains("Resize inode not valid"), "{why}");
    lab.mark().set(FINDINGS).unwrap();
    lab.is_whole("whole").unwrap();
}

#[test]
fn no_growth_needs_a_move() {
    let lab = Lab::new();
    let mut head = vec![0; 4096];
    File::open(lab.path("whole")).unwrap().read_exact(&mut head).unwrap();
    let now = Geometry::read(&head).unwrap();
    assert_eq!((now.blocks, now.errors), (BEFORE / 4096, false));
    assert_eq!(now.blocks_on(BEFORE), now.blocks);
    assert_eq!(now.blocks_on(AFTER), AFTER / 4096);
    // 256 MiB are two groups; a few blocks of a third one are left away, as resize2fs does.
    assert_eq!(now.blocks_on(256 * MIB + 100 * 4096), 256 * MIB / 4096);
    let most = now.blocks_on(1 << 50);
    assert!(most >= now.blocks * 1024 && most < now.blocks * 2048, "{most}");
    assert_eq!(now.blocks_on(1 << 51), most);
}
