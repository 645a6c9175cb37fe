//! The fuzzers' corpus of resource names (`fuzz/corpus/names`) with every test run.

use custody_types::{
    ApprovalName, ClusterName, GroupName, IdentityApprovalName, KeyName, KeyVersionName, ManagedIdentityName,
    PrincipalName, RoleDefinitionName, VaultName, VolumeName,
};

/// How many kinds of names a text is; each kind prints back what it was.
fn kinds(text: &str) -> usize {
    macro_rules! count {
        ($($name:ty),+) => { [$(text.parse::<$name>().is_ok_and(|n| n.as_str() == text)),+] };
    }
    let parsed = count!(
        ApprovalName,
        ClusterName,
        GroupName,
        IdentityApprovalName,
        KeyName,
        KeyVersionName,
        ManagedIdentityName,
        PrincipalName,
        RoleDefinitionName,
        VaultName,
        VolumeName
    );
    parsed.into_iter().filter(|p| *p).count()
}

#[test]
fn a_name_is_of_one_kind_or_of_none() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/names");
    let mut tried = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let good = entry.file_name().to_str().unwrap().starts_with("ok-");
        assert_eq!(kinds(&text), usize::from(good), "{text:.60}");
        for (at, _) in text.char_indices().take(300) {
            assert!(kinds(&text[..at]) <= 1);
        }
        tried += 1;
    }
    assert!(tried > 20, "only {tried} of the corpus");
}
