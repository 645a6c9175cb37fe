//! The runbook of a team whose database is under a customer's key. Each test is one page of it.

use anyhow::{Result, ensure};
use custody_testkit::{Cluster, Service, State};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Page 1: the customer takes the key away. The database is gone within a second and says why; no copy of the key is left; given back, every
/// row is there, and nobody on call had to do anything.
#[tokio::test]
async fn the_customer_takes_the_key_away_and_gives_it_back() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.query("CREATE TABLE orders AS SELECT generate_series(1, 1000) AS id").await?;

    let revocation = cluster.revoke().await?;
    ensure!(revocation.erased > 0 && revocation.lapsed == 0, "{revocation:?}");
    cluster.verify(&revocation).await?;
    cluster.wait_for(State::Inaccessible, SOON).await?;
    ensure!(cluster.query("SELECT 1").await.is_err(), "no query is answered");

    cluster.reinstate().await?;
    cluster.wait_for(State::Ready, SOON).await?;
    ensure!(cluster.wait_for_answer("SELECT count(*) FROM orders", SOON).await? == "1000");
    Ok(())
}

/// Page 2: what the cloud does to us, and nobody has to get up for: an outage within the grace, a rotation, a bad day, a node that is
/// killed.
#[tokio::test]
async fn nobody_gets_up_for_these() -> Result<()> {
    let cluster = Cluster::builder().lease(Duration::from_secs(15), Duration::from_secs(5)).start().await?;
    cluster.query("CREATE TABLE orders (id int)").await?;
    cluster.rotate().await?;
    cluster.profile("bad-day").await?;
    cluster.vault_outage(Duration::from_secs(4)).await?;
    for id in 0..40 {
        cluster.query(&format!("INSERT INTO orders VALUES ({id})")).await?;
    }
    cluster.profile("none").await?;
    cluster.kill(Service::Vault).await?;
    cluster.kill(Service::Control).await?;
    ensure!(cluster.query("SELECT count(*) FROM orders").await? == "40");
    cluster.kill(Service::Storage).await?;
    ensure!(cluster.wait_for_answer("SELECT count(*) FROM orders", SOON).await? == "40");
    Ok(())
}

/// Page 3: what somebody gets up for. A node that is cut off from the vault stops when its lease ends, and goes on by itself when the network
/// is back; a key that has expired is extended.
#[tokio::test]
async fn somebody_gets_up_for_these() -> Result<()> {
    let cluster = Cluster::start().await?;
    let partition = cluster.partition();
    cluster.wait_for(State::Inaccessible, SOON).await?;
    drop(partition);
    cluster.wait_for(State::Ready, SOON).await?;

    cluster.command(&["key", "dates", cluster.key(), "--until", "2100-01-01T00:00:00Z"]).await?;
    cluster.rotate().await?;
    cluster.command(&["key", "dates", cluster.key(), "--until", "2027-06-01T00:00:00Z"]).await?;
    cluster.clock_jump(300 * 86_400).await?;
    cluster.wait_for(State::Inaccessible, SOON).await?;
    cluster.command(&["key", "dates", cluster.key(), "--until", "2100-01-01T00:00:00Z"]).await?;
    cluster.wait_for(State::Ready, SOON).await?;
    cluster.wait_for_answer("SELECT 1", SOON).await?;
    Ok(())
}
