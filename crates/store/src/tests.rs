//! Stores that are opened, filled, altered and put back.

use super::*;

#[test]
fn a_batch_is_kept_and_a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut batch = Batch::new();
    batch.put("a", "x/1", &1u32).put("a", "x/2", &2u32).put("b", "x/1", &3u32);
    store.commit(batch).unwrap();
    match Store::open(dir.path()) {
        Err(StoreError::InUse(path)) => assert_eq!(path, dir.path()),
        other => panic!("expected InUse, got {other:?}"),
    }
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.scan::<u32>("a", "x/").unwrap(), [("x/1".into(), 1), ("x/2".into(), 2)]);
    assert_eq!(store.get::<u32>("b", "x/1").unwrap(), Some(3));
    assert_eq!(store.get::<u32>("b", "x").unwrap(), None);
    assert!(matches!(store.get::<String>("b", "x/1"), Err(StoreError::Unreadable { .. })));
}

#[test]
fn the_directory_of_a_dropped_store_is_free() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..100 {
        put(&Store::open(dir.path()).unwrap(), n);
    }
}

const KEY: [u8; 32] = [9; 32];

fn put(store: &Store, n: u32) {
    let mut batch = Batch::new();
    batch.put("a", &format!("x/{n}"), &n).put("a", "last", &n);
    store.commit(batch).unwrap();
}

fn copy(from: &Path, to: &Path) {
    _ = std::fs::remove_dir_all(to);
    let done = std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap();
    assert!(done.success());
}

#[test]
fn a_store_that_was_put_back_or_altered_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (home, anchor) = (dir.path().join("store"), dir.path().join("anchor"));
    let reopen = |accepted| {
        let store = Store::open(&home).unwrap();
        store.check_integrity(&KEY, &anchor, accepted)?;
        assert!(store.check_rest(|| true)?);
        Ok(store)
    };
    let store = Store::open(&home).unwrap();
    store.begin_integrity(&KEY, &anchor, Batch::new()).unwrap();
    put(&store, 1);
    drop(store);
    copy(&home, &dir.path().join("older"));
    std::fs::copy(&anchor, dir.path().join("older-anchor")).unwrap();

    // Before it is checked it is read only.
    let store = Store::open(&home).unwrap();
    assert!(matches!(store.commit(Batch::new()), Err(StoreError::Locked)));
    drop(store);
    let store = reopen(None).unwrap();
    (2..10).for_each(|n| put(&store, n));
    store
        .commit({
            let mut batch = Batch::new();
            batch.delete("a", "x/3").delete("a", "x/absent");
            batch
        })
        .unwrap();
    drop(store);
    drop(reopen(None).unwrap());
    copy(&home, &dir.path().join("newest"));

    // Put back.
    copy(&dir.path().join("older"), &home);
    let found = reopen(None).err().unwrap();
    assert!(matches!(found, StoreError::RolledBack { store: 2, anchor: 11 }), "{found}");
    // Its anchor put back, and not the store; or gone.
    copy(&dir.path().join("newest"), &home);
    std::fs::rename(&anchor, dir.path().join("newest-anchor")).unwrap();
    assert!(matches!(reopen(None).err().unwrap(), StoreError::AnchorLost { store: 11, .. }));
    std::fs::copy(dir.path().join("older-anchor"), &anchor).unwrap();
    assert!(matches!(reopen(None).err().unwrap(), StoreError::AnchorLost { store: 11, .. }));
    // One behind is what a kill leaves.
    std::fs::rename(dir.path().join("newest-anchor"), &anchor).unwrap();
    // The older state is accepted by its number alone, and is what counts then.
    copy(&dir.path().join("older"), &home);
    assert!(reopen(Some(3)).is_err());
    let store = reopen(Some(2)).unwrap();
    put(&store, 20);
    drop(store);
    drop(reopen(None).unwrap());

    // Any row changed, added or removed by something else.
    for change in
        ["altered", "added", "added apart", "removed", "all removed", "state", "part", "part removed"]
    {
        copy(&home, &dir.path().join("good"));
        let store = Store::open(&home).unwrap();
        let db = &store.db;
        match change {
            "altered" => _ = db.insert(row("a", "x/1"), "7").unwrap(),
            "added" => _ = db.insert(row("a", "y"), "7").unwrap(),
            "added apart" => _ = db.insert(row("a", "y/1/2"), "7").unwrap(),
            "removed" => _ = db.remove(row("a", "x/1")).unwrap(),
            "all removed" => {
                db.scan_prefix("a\0").keys().for_each(|row| _ = db.remove(row.unwrap()).unwrap())
            }
            "part" => _ = db.insert("integrity\0parts/a\0", &[7; 32]).unwrap(),
            "part removed" => _ = db.remove("integrity\0parts/a\0").unwrap().unwrap(),
            _ => {
                let state = db.get(integrity::state_row()).unwrap().unwrap();
                let text = String::from_utf8(state.to_vec()).unwrap().replace("\"commit\":3", "\"commit\":4");
                db.insert(integrity::state_row(), text.as_bytes()).unwrap();
            }
        }
        db.flush().unwrap();
        drop(store);
        assert!(matches!(reopen(None).err().unwrap(), StoreError::Altered), "{change}");
        copy(&dir.path().join("good"), &home);
    }
    drop(reopen(None).unwrap());
    // Under another key nothing holds.
    let store = Store::open(&home).unwrap();
    assert!(matches!(store.check_integrity(&[8; 32], &anchor, None), Err(StoreError::Altered)));
}

#[test]
fn what_is_altered_is_found_when_it_is_read_and_ends_all() {
    let dir = tempfile::tempdir().unwrap();
    let (home, anchor) = (dir.path().join("store"), dir.path().join("anchor"));
    let store = Store::open(&home).unwrap();
    store.begin_integrity(&KEY, &anchor, Batch::new()).unwrap();
    for part in ["v/1/", "v/2/", "v/3/"] {
        let mut batch = Batch::new();
        (0..50u32).for_each(|n| _ = batch.put("a", &format!("{part}{n}"), &n));
        store.commit(batch).unwrap();
    }
    drop(store);
    Store::open(&home).unwrap().tamper("a", "v/2/7", "8").unwrap();
    // The start does not see it: it reads no part.
    let store = Store::open(&home).unwrap();
    store.check_integrity(&KEY, &anchor, None).unwrap();
    assert_eq!(store.get::<u32>("a", "v/1/7").unwrap(), Some(7));
    assert_eq!(store.scan::<u32>("a", "v/3/").unwrap().len(), 50);
    // A commit to what is checked, and to what is new; one to what is altered finds that.
    let put = |key: &str| {
        let mut batch = Batch::new();
        batch.put("a", key, &1u32);
        store.commit(batch)
    };
    put("v/1/99").unwrap();
    put("v/4/1").unwrap();
    assert!(matches!(put("v/2/99"), Err(StoreError::Altered)));
    for read in ["v/1/7", "v/2/7", "v/5/1"] {
        assert!(matches!(store.get::<u32>("a", read), Err(StoreError::Altered)), "{read}");
    }
    assert!(matches!(store.scan::<u32>("a", ""), Err(StoreError::Altered)));
    assert!(matches!(store.check_rest(|| true), Err(StoreError::Altered)));
    assert!(matches!(put("v/1/98"), Err(StoreError::Altered)));
    drop(store);
    let store = Store::open(&home).unwrap();
    store.check_integrity(&KEY, &anchor, None).unwrap();
    assert!(!store.check_rest(|| false).unwrap());
    drop(store);
    // What was read before is checked at once, also what should not be there.
    for early in ["v/2/7", "v/9/1"] {
        let store = Store::open(&home).unwrap();
        store.get::<u32>("a", early).unwrap();
        let checked = store.check_integrity(&KEY, &anchor, None);
        assert_eq!(checked.is_ok(), early == "v/9/1", "{early}");
    }
    let store = Store::open(&home).unwrap();
    store.tamper("b", "clock", "7").unwrap();
    assert_eq!(store.get::<u32>("b", "clock").unwrap(), Some(7));
    assert!(matches!(store.check_integrity(&KEY, &anchor, None), Err(StoreError::Altered)));
    drop(store);
    let store = Store::open(&home).unwrap();
    store.check_integrity(&KEY, &anchor, None).unwrap();
    assert!(matches!(store.scan::<u32>("a", "v/2/7"), Err(StoreError::Altered)));
}

#[test]
fn a_store_of_the_format_before_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let (home, anchor) = (dir.path().join("store"), dir.path().join("anchor"));
    let store = Store::open(&home).unwrap();
    let mut batch = Batch::new();
    (0..50u32).for_each(|n| _ = batch.put("a", &format!("v/{}/{n}", n % 3), &n));
    store.commit(batch).unwrap();
    drop(store);
    let store = Store::open(&home).unwrap();
    integrity::tests::write_first_format(&store.db, &KEY, &anchor, 3);
    drop(store);
    copy(&home, &dir.path().join("before"));
    std::fs::copy(&anchor, dir.path().join("anchor-before")).unwrap();

    let store = Store::open(&home).unwrap();
    store.check_integrity(&KEY, &anchor, None).unwrap();
    put(&store, 7);
    drop(store);
    let store = Store::open(&home).unwrap();
    store.check_integrity(&KEY, &anchor, None).unwrap();
    assert_eq!(store.scan::<u32>("a", "v/").unwrap().len(), 50);
    assert!(store.check_rest(|| true).unwrap());
    drop(store);
    // A row more in the store of before, and it is not.
    copy(&dir.path().join("before"), &home);
    std::fs::copy(dir.path().join("anchor-before"), &anchor).unwrap();
    Store::open(&home).unwrap().tamper("a", "v/1/77", "8").unwrap();
    assert!(matches!(
        Store::open(&home).unwrap().check_integrity(&KEY, &anchor, None),
        Err(StoreError::Altered)
    ));
}

#[test]
fn readers_and_writers_of_a_part_that_is_not_checked_yet_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (home, anchor) = (dir.path().join("store"), dir.path().join("anchor"));
    let store = Store::open(&home).unwrap();
    store.begin_integrity(&KEY, &anchor, Batch::new()).unwrap();
    for part in 0..8 {
        let mut batch = Batch::new();
        (0..500u32).for_each(|n| _ = batch.put("a", &format!("v/{part}/{n}"), &n));
        store.commit(batch).unwrap();
    }
    drop(store);
    for _ in 0..3 {
        let store = Store::open(&home).unwrap();
        store.check_integrity(&KEY, &anchor, None).unwrap();
        std::thread::scope(|threads| {
            for writer in 0..4u32 {
                let store = &store;
                threads.spawn(move || {
                    for part in 0..12 {
                        let mut batch = Batch::new();
                        batch.put("a", &format!("v/{part}/w{writer}"), &writer);
                        store.commit(batch).unwrap();
                        assert!(
                            !store.scan::<u32>("a", &format!("v/{}/", 11 - part)).unwrap().is_empty()
                                || part < 4
                        );
                    }
                });
            }
            threads.spawn(|| assert!(store.check_rest(|| true).unwrap()));
        });
        drop(store);
    }
    let store = Store::open(&home).unwrap();
    store.check_integrity(&KEY, &anchor, None).unwrap();
    assert!(store.check_rest(|| true).unwrap());
    assert_eq!(store.scan::<u32>("a", "").unwrap().len(), 8 * 500 + 12 * 4);
}

#[test]
fn a_kill_between_commit_and_anchor_is_no_rollback() {
    let dir = tempfile::tempdir().unwrap();
    let (home, anchor) = (dir.path().join("store"), dir.path().join("anchor"));
    let store = Store::open(&home).unwrap();
    store.begin_integrity(&KEY, &anchor, Batch::new()).unwrap();
    for n in 1..6 {
        let before = std::fs::read(&anchor).unwrap();
        put(&store, n);
        if n == 5 {
            std::fs::write(&anchor, before).unwrap();
        }
    }
    drop(store);
    let store = Store::open(&home).unwrap();
    store.check_integrity(&KEY, &anchor, None).unwrap();
    // The very first one, too: no anchor yet.
    let (home, anchor) = (dir.path().join("first"), dir.path().join("first-anchor"));
    let store = Store::open(&home).unwrap();
    store.begin_integrity(&KEY, &anchor, Batch::new()).unwrap();
    drop(store);
    std::fs::remove_file(&anchor).unwrap();
    Store::open(&home).unwrap().check_integrity(&KEY, &anchor, None).unwrap();
    // A store that was taken away is not begun anew under its anchor.
    let store = Store::open(&dir.path().join("other")).unwrap();
    let begun = store.begin_integrity(&[8; 32], &anchor, Batch::new());
    assert!(matches!(begun, Err(StoreError::AnchorTaken(_))));
}
