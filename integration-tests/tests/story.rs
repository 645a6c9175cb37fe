//! The demonstration is itself a test: it ends non-zero when any of its checks fails.
use custody_testkit::{database_tools, target_program};
use std::process::Command;

#[test]
fn the_demonstration_passes_and_skips_nothing() {
    database_tools().expect("scripts/test installs what this needs");
    let output = Command::new(target_program("custody"))
        .args(["demo", "--load-s", "4", "--azure-python"])
        .arg(custody_integration_tests::python())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("nothing was skipped"), "{said}");
}
