//! Point-in-time recovery: a restored volume goes on, from the archive of its log, to a moment of its source's past.
//!
//! PostgreSQL does the work (its manual, 26.3.5). A volume that was backed up as it stood has no backup label: the server
//! first recovers as after a crash, from its own log, and only then reads the archive.

use crate::{DatabaseError, Instance, command::run};
use custody_types::UnixMillis;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long a recovery may take.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a recovered server may take to end.
const END_GRACE: Duration = Duration::from_secs(60);
/// What the server says where its log ends before the moment that it shall go to.
const ENDED_EARLY: &str = "recovery ended before configured recovery target was reached";

/// What an instance recovers to before it first serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Unlike that of any other recovery: a copy of a recovered volume is not taken for recovered.
    pub id: String,
    /// The archive of the source's log.
    pub archive: String,
    /// What was committed until then is there, and nothing later.
    pub target_time: UnixMillis,
    /// A segment that the archive had, and that was last written to at or after the moment: no recovery ends before it
    /// without having reached the moment.
    pub last_segment: String,
}

/// What a recovery was given from the archive. Whoever serves the archive tells.
#[derive(Clone, Debug, Default)]
pub struct RecoveryProgress(Arc<Mutex<Given>>);

#[derive(Debug, Default)]
struct Given {
    last_segment: bool,
    damaged: Option<String>,
}

impl RecoveryProgress {
    /// A file was read.
    pub fn given(&self, recovery: &Recovery, file: &str) {
        if file == recovery.last_segment {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).last_segment = true;
        }
    }

    /// A file cannot be read, now or later.
    pub fn damaged(&self, why: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).damaged = Some(why.to_owned());
    }

    fn take(&self) -> Given {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Instance {
    /// Recovers, unless that is done. The server runs for that alone, and ends.
    /// `own_archive` are the settings that have its own log archived, from the history of its new timeline on.
    pub(crate) fn recover(
        &mut self,
        recovery: &Recovery,
        port: u16,
        own_archive: &[String],
    ) -> Result<(), DatabaseError> {
        let signal = self.pgdata().join("recovery.signal");
        let marker = self.pgdata().join("custody.recovery");
        let own = serde_json::to_vec(recovery).map_err(|e| DatabaseError::Io(e.into()))?;
        if fs::read(&marker).is_ok_and(|found| found == own) {
            // The server removes its signal when it has recovered.
            if !signal.exists() {
                return Ok(());
            }
        } else {
            // The signal first: with the marker alone, the recovery would be taken for done.
            place(Path::new("/dev/null"), &signal)?;
            let draft = self.dir.join("recovery.partial");
            fs::write(&draft, own)?;
            place(&draft, &marker)?;
        }
        _ = self.progress.take();
        match self.run_recovery(recovery, Some(recovery.target_time), port, own_archive) {
            Err(DatabaseError::NotServing(said)) if said.contains(ENDED_EARLY) => {
                // Nothing was committed between the moment and the end of the archive: everything in it is to be there.
                if !self.progress.take().last_segment {
                    let why = format!(
                        "the archive `{}` has a gap before `{}`",
                        recovery.archive, recovery.last_segment
                    );
                    return Err(DatabaseError::Recovery(why));
                }
                self.run_recovery(recovery, None, port, own_archive)
            }
            done => done,
        }
    }

    fn run_recovery(
        &mut self,
        recovery: &Recovery,
        until: Option<UnixMillis>,
        port: u16,
        own_archive: &[String],
    ) -> Result<(), DatabaseError> {
        let mut settings = own_archive.to_vec();
        settings.extend([
            // Nobody is served before it is what it shall be, and what it says of the log is no one's data.
            "listen_addresses=".to_owned(),
            "hot_standby=off".to_owned(),
            "logging_collector=off".to_owned(),
            "recovery_target_action=promote".to_owned(),
            format!("restore_command={}", self.wal_command("get", "%f \"%p\"")),
        ]);
        if let Some(time) = until {
            let time = i64::try_from(time.as_millis())
                .ok()
                .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            let time =
                time.ok_or_else(|| DatabaseError::Recovery("the moment lies too far ahead".to_owned()))?;
            // With a number for the zone: the setting knows no abbreviations, `Z` among them.
            settings.push(format!("recovery_target_time={}", time.strftime("%Y-%m-%d %H:%M:%S%.3f+00")));
        }
        tracing::info!(archive = recovery.archive, target = ?until, "recovering from an archive");
        let done = self.run_server(&settings, port, RECOVERY_TIMEOUT);
        let damaged = self.progress.0.lock().unwrap_or_else(PoisonError::into_inner).damaged.take();
        if let Some(why) = damaged {
            self.end_server(Signal::QUIT, END_GRACE);
            return Err(DatabaseError::Recovery(why));
        }
        done?;
        self.end_server(Signal::INT, END_GRACE);
        Ok(())
    }
}

/// Puts a file of the server's in place, whole and durable.
fn place(from: &Path, to: &Path) -> Result<(), DatabaseError> {
    let (from, at) = (from.display().to_string(), to.display().to_string());
    run("install", &["-o", "postgres", "-g", "postgres", "-m", "0600", &from, &at])?;
    File::open(to)?.sync_all()?;
    Ok(File::open(to.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()?)
}
