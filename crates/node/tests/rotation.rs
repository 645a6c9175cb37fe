//! Data keys are retired by order, by age and when they are used; what they sealed is re-encrypted, once.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "stage/protector.rs"]
mod protector;

use custody_envelope::VolumeKey;
use custody_node::{layout::EXTENT_LEN, *};
use custody_types::{Clock, UnixMillis};
use protector::protector;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const EXTENTS: u32 = 4;
const DAY: u64 = 86_400_000;

/// A clock that is set.
#[derive(Clone)]
struct SetClock(Arc<AtomicU64>);

impl Clock for SetClock {
    fn now(&self) -> UnixMillis {
        UnixMillis::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

struct Stage {
    dir: tempfile::TempDir,
    clock: SetClock,
}

impl Stage {
    fn new() -> Self {
        let clock = SetClock(Arc::new(AtomicU64::new(1000 * DAY)));
        let stage = Self { dir: tempfile::tempdir().unwrap(), clock };
        let size = u64::from(EXTENTS) * EXTENT_LEN;
        let volume = Volume::create(&stage.path(), size, &key(), protector(), stage.options()).unwrap();
        for extent in 0..EXTENTS {
            volume.write_at(u64::from(extent) * EXTENT_LEN + 5, &[extent as u8 + 1; 30_000]).unwrap();
        }
        volume.flush().unwrap();
        stage
    }

    fn path(&self) -> impl AsRef<Path> + std::ops::Deref<Target = Path> {
        self.dir.path().join("v.volume")
    }

    fn options(&self) -> VolumeOptions {
        let age = Duration::from_millis(30 * DAY);
        VolumeOptions {
            clock: Arc::new(self.clock.clone()),
            data_key_age_max: age,
            ..VolumeOptions::default()
        }
    }

    fn open(&self) -> Volume {
        Volume::open(&self.path(), &key(), self.options()).unwrap()
    }

    fn pass(&self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::Relaxed);
    }
}

fn key() -> VolumeKey {
    VolumeKey::from_bytes(&[9; 32]).unwrap()
}

fn generations(volume: &Volume) -> Vec<u16> {
    (0..EXTENTS).map(|e| volume.dek_generation(e).unwrap()).collect()
}

fn whole(volume: &Volume) -> bool {
    (0..EXTENTS).all(|extent| {
        let mut out = vec![0; 30_010];
        volume.read_at(u64::from(extent) * EXTENT_LEN, &mut out).unwrap();
        let (before, data) = out.split_at(5);
        let (data, after) = data.split_at(30_000);
        before == [0; 5] && data.iter().all(|b| *b == extent as u8 + 1) && after == [0; 5]
    })
}

#[test]
fn an_order_is_carried_out_once_and_outlives_a_restart() {
    let stage = Stage::new();
    let volume = stage.open();
    assert_eq!(volume.retired_extents(|| false).unwrap(), (vec![], EXTENTS));
    stage.pass(5);
    volume.retire_data_keys().unwrap();
    assert_eq!(volume.retired_extents(|| false).unwrap(), ((0..EXTENTS).collect(), EXTENTS));
    assert!(volume.rotate_due(2).unwrap());
    assert!(!volume.rotate_due(2).unwrap(), "once");
    drop(volume);

    let volume = stage.open();
    assert_eq!(
        volume.retired_extents(|| false).unwrap().0,
        [0, 1, 3],
        "the order, and what was done, are on disk"
    );
    for extent in [0, 1, 3] {
        assert!(volume.rotate_due(extent).unwrap());
    }
    assert_eq!(volume.retired_extents(|| false).unwrap().0, Vec::<u32>::new());
    assert_eq!(generations(&volume), [2; 4]);
    assert!(whole(&volume));
    drop(volume);
    assert!(whole(&stage.open()));
}

#[test]
fn a_key_that_is_too_old_is_retired() {
    let stage = Stage::new();
    stage.pass(29 * DAY);
    let volume = stage.open();
    assert_eq!(volume.retired_extents(|| false).unwrap().0, Vec::<u32>::new());
    assert!(volume.rotate_due(1).is_ok_and(|rotated| !rotated));
    // One extent's key is younger than the others'.
    volume.rotate_extent(1).unwrap();
    stage.pass(2 * DAY);
    assert_eq!(volume.retired_extents(|| false).unwrap().0, [0, 2, 3]);
    assert!(volume.rotate_due(0).unwrap());
    assert_eq!(generations(&volume), [2, 2, 1, 1]);
    assert!(whole(&volume));
}

#[test]
fn what_is_used_under_a_retired_key_is_due_first() {
    let stage = Stage::new();
    stage.pass(40 * DAY);
    let volume = stage.open();
    assert_eq!(volume.take_rotations_due(), Vec::<u32>::new());
    volume.read_at(3 * EXTENT_LEN, &mut [0; 10]).unwrap();
    volume.write_at(EXTENT_LEN + 5, &[2; 10]).unwrap();
    assert_eq!(volume.take_rotations_due(), [1, 3]);
}

#[test]
fn a_clock_that_is_set_back_rotates_nothing_twice() {
    let stage = Stage::new();
    let volume = stage.open();
    volume.retire_data_keys().unwrap();
    stage.clock.0.fetch_sub(DAY, Ordering::Relaxed);
    for extent in 0..EXTENTS {
        assert!(volume.rotate_due(extent).unwrap());
    }
    assert_eq!(volume.retired_extents(|| false).unwrap().0, Vec::<u32>::new());
    drop(volume);
    assert_eq!(stage.open().retired_extents(|| false).unwrap().0, Vec::<u32>::new());
}
