//! The fuzzers' corpus (`fuzz/corpus/rest`) with every test run: nothing panics, what is good is taken, and what is bad gets a
//! status of the client's.
use custody_vault_rest::{judge, judge_head};

#[test]
fn requests_are_judged_and_nothing_panics() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/rest");
    let mut tried = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let content = std::fs::read(entry.path()).unwrap();
        let end = content.iter().position(|b| *b == b'\n').unwrap();
        let (line, body) = (std::str::from_utf8(&content[..end]).unwrap(), &content[end + 1..]);
        let (method, target) = line.split_once(' ').unwrap();
        let judged = judge(method, target, body);
        match judged {
            Ok(()) => assert!(name.starts_with("ok-"), "{name} was taken"),
            Err(status) => {
                assert!(name.starts_with("bad-") && (400..500).contains(&status), "{name}: {status}")
            }
        }
        // Cut anywhere and with any one bit turned, it is still judged.
        for at in 0..body.len().min(400) {
            _ = judge(method, target, &body[..at]);
            let mut turned = body.to_vec();
            turned[at] ^= 1 << (at % 8);
            _ = judge(method, target, &turned);
        }
        tried += 1;
    }
    assert!(tried > 30, "only {tried} of the corpus");
}

/// `fuzz/corpus/headers`: the first line says what is expected, a vault or a dash, and whether there is a token.
#[test]
fn heads_are_judged_and_nothing_panics() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/headers");
    let mut tried = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let content = std::fs::read_to_string(entry.path()).unwrap();
        let (expected, head) = content.split_once('\n').unwrap();
        let judged = match judge_head(head) {
            None => "none".to_owned(),
            Some((vault, token)) => format!("{} {token}", vault.unwrap_or_else(|| "-".to_owned())),
        };
        assert_eq!(judged, expected, "{}", entry.path().display());
        for at in 0..head.len() {
            _ = head.get(..at).map(judge_head);
            let mut turned = head.as_bytes().to_vec();
            turned[at] ^= 1 << (at % 8);
            _ = std::str::from_utf8(&turned).ok().map(judge_head);
        }
        tried += 1;
    }
    assert!(tried >= 8);
}
