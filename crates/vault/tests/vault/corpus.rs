//! Backups and transfer files cut anywhere and with any one bit turned: nothing panics, nothing is made.

use crate::rig::*;
use custody_vault::*;

#[test]
fn damaged_backups_and_transfer_files_make_nothing() {
    let rig = rig();
    with_key(&rig);
    let copy = rig.vault.backup_key(&officer(), "vaults/v/keys/k").unwrap();
    rig.vault.delete_key(&officer(), "vaults/v/keys/k").unwrap();
    let restore = |bytes: &[u8]| rig.vault.restore_key(&officer(), "vaults/v", bytes).unwrap_err();
    for step in 0..60 {
        let at = step * copy.len() / 60;
        assert_eq!(restore(&copy[..at]).field(), Some("backup"));
        let mut turned = copy.clone();
        turned[at] ^= 1 << (step % 8);
        assert_eq!(restore(&turned).field(), Some("backup"));
    }
    assert_eq!(restore(&copy).reason(), "NAME_HELD", "replayed while its key can be recovered");

    let kid = "https://v.vault.localhost:1/keys/k/0123456789abcdef0123456789abcdef";
    let good = format!(
        "{{\"schema_version\":\"1.0.0\",\"header\":{{\"kid\":\"{kid}\",\"alg\":\"dir\",\"enc\":\"CKM_RSA_AES_KEY_WRAP\"}},\"ciphertext\":\"AAAA\"}}"
    );
    let take = |bytes: &[u8]| {
        let material = Material::Transfer { file: bytes.to_vec(), declared: None };
        let made = rig.vault.create_key(
            &officer(),
            "vaults/v",
            "brought",
            material,
            Particulars::default(),
            IfExists::Refuse,
        );
        made.unwrap_err()
    };
    assert_eq!(take(good.as_bytes()).reason(), "NOT_FOUND", "well formed, of a key that there is not");
    for at in 0..good.len() {
        take(&good.as_bytes()[..at]);
        let mut turned = good.clone().into_bytes();
        turned[at] ^= 1 << (at % 8);
        take(&turned);
    }
    assert_eq!(take(&vec![b' '; 70_000]).field(), Some("byok"));
    assert!(rig.vault.get_key(&officer(), "vaults/v/keys/brought").is_err());
}
