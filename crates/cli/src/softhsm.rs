//! An HSM of software, to try out what an HSM is for: SoftHSM 2 with one token, in the deployment's directory.

use crate::pki;
use anyhow::{Context as _, ensure};
use serde_json::json;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];
const TOOL: &str = "softhsm2-util";
/// The token's label.
const LABEL: &str = "custody";
/// Where SoftHSM is told of its configuration.
pub(crate) const CONFIGURATION: &str = "SOFTHSM2_CONF";

fn module() -> Option<PathBuf> {
    MODULES.iter().map(PathBuf::from).find(|module| module.exists())
}

/// What this machine lacks for one.
pub(crate) fn missing() -> Option<String> {
    let tool = || Command::new(TOOL).arg("--version").output().is_ok();
    let there = module().is_some() && tool();
    (!there).then(|| "SoftHSM 2 (Debian's softhsm2)".to_owned())
}

fn pin() -> anyhow::Result<String> {
    let mut pin = [0; 8];
    getrandom::fill(&mut pin).map_err(|e| anyhow::anyhow!("no random bytes: {e}"))?;
    Ok(hex::encode(pin))
}

pub(crate) struct SoftHsm {
    dir: PathBuf,
}

impl SoftHsm {
    /// That of a deployment.
    pub(crate) fn of(deployment: &Path) -> Self {
        Self { dir: deployment.join("hsm") }
    }

    /// SoftHSM's configuration: there once there is a token.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.dir.join("softhsm2.conf")
    }

    fn tokens(&self) -> PathBuf {
        self.dir.join("tokens")
    }

    /// Makes the token, where there is none, and answers what the vault is to be told of it.
    pub(crate) fn ensure(&self) -> anyhow::Result<serde_json::Value> {
        if let Some(missing) = missing() {
            anyhow::bail!("--soft-hsm needs {missing}");
        }
        let (module, pin_file) = (module().context("SoftHSM's module is gone")?, self.dir.join("pin"));
        if !self.configuration().exists() {
            fs::create_dir_all(self.tokens())?;
            let (user, officer) = (pin()?, pin()?);
            pki::write_secret(&pin_file, &user)?;
            // It has its name when all of it is there.
            let partial = self.dir.join("softhsm2.partial");
            let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", self.tokens().display());
            fs::write(&partial, text)?;
            let made = Command::new(TOOL)
                .args(["--init-token", "--free", "--label", LABEL, "--pin", &user, "--so-pin", &officer])
                .env(CONFIGURATION, &partial)
                .output()?;
            ensure!(made.status.success(), "{TOOL}: {}", String::from_utf8_lossy(&made.stderr));
            fs::rename(partial, self.configuration())?;
        }
        Ok(json!({ "module": module, "token": LABEL, "pin_file": pin_file }))
    }

    /// Pulls the plug.
    pub(crate) fn take_away(&self) -> io::Result<()> {
        fs::rename(self.tokens(), self.dir.join("away"))?;
        fs::create_dir(self.tokens())
    }

    /// Puts it back.
    pub(crate) fn bring_back(&self) -> io::Result<()> {
        fs::remove_dir(self.tokens())?;
        fs::rename(self.dir.join("away"), self.tokens())
    }
}
