//! A witness sees a trail go on, and finds one that was written anew by who has its key.

use custody_testkit::Deployment;
use std::fs;

#[test]
fn a_trail_that_was_written_anew_is_found_by_its_witness() {
    let deployment = Deployment::start();
    let outside = tempfile::tempdir().unwrap();
    let kept = outside.path().display().to_string();
    let audit = deployment.dir().join("vault/data/audit");
    let public = audit.join("checkpoint.pub").display().to_string();
    let refused = deployment.cli(&["audit", "witness", &kept]).unwrap_err().to_string();
    assert!(refused.contains("--public-key"), "{refused}");
    let witness = |deployment: &Deployment| {
        deployment.cli(&["audit", "witness", &kept]).map(|said| said.as_str().unwrap().to_owned())
    };
    let first = deployment.run(&["audit", "witness", &kept, "--public-key", &public]);
    assert!(first.as_str().unwrap().contains("cosigned"), "{first}");
    _ = deployment.run(&["vault", "create", "more"]);
    custody_testkit::eventually("the trail has gone on", std::time::Duration::from_secs(20), || {
        witness(&deployment).unwrap().contains("seen to go on").then_some(())
    });
    let checkpoint = outside.path().join("checkpoint").display().to_string();
    _ = deployment.run(&["audit", "verify", "--checkpoint", &checkpoint]);

    // Whoever runs the service begins its trail anew, with its own key.
    let dir = deployment.stop();
    let moved = outside.path().join("moved");
    fs::create_dir_all(&moved).unwrap();
    for name in ["journal-000001.jsonl", "tree"] {
        fs::copy(audit.join(name), moved.join(name)).unwrap();
        fs::remove_file(audit.join(name)).unwrap();
    }
    let deployment = Deployment::start_in(dir, &[]).unwrap();
    _ = deployment.run(&["audit", "verify"]);
    let cut = witness(&deployment).unwrap_err().to_string();
    assert!(cut.contains("THE TRAIL WAS CUT"), "{cut}");
    for n in 0..10 {
        _ = deployment.run(&["vault", "create", &format!("v{n}")]);
    }
    let rewritten =
        custody_testkit::eventually("it is longer than it was", std::time::Duration::from_secs(20), || {
            witness(&deployment).err().map(|e| e.to_string()).filter(|e| e.contains("REWRITTEN"))
        });
    assert!(rewritten.contains("does not go on"), "{rewritten}");
    let refused = deployment.cli(&["audit", "verify", "--checkpoint", &checkpoint]).unwrap_err().to_string();
    assert!(refused.contains("records before that were altered"), "{refused}");
    // Another trail's key is not taken for it.
    let other = deployment.dir().join("control/data/audit/checkpoint.pub").display().to_string();
    let refused =
        deployment.cli(&["audit", "witness", &kept, "--public-key", &other]).unwrap_err().to_string();
    assert!(refused.contains("of another trail"), "{refused}");
}
