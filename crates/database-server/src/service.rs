//! The DatabaseNode service on the wire.

use crate::{
    supervisor::{Command, Fleet, State, Supervised, View},
    wal::Archiving,
};
use custody_database::{InstanceSpec, Recovery};
use custody_proto::database::{
    self as wire,
    database_node_server::{DatabaseNode, DatabaseNodeServer},
};
use custody_rpc::{
    page::cut,
    status::{internal, invalid},
    timestamp::{from_wire, to_wire},
};
use custody_types::VolumeName;
use std::sync::Arc;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

pub(crate) struct DatabaseService {
    fleet: Arc<Fleet>,
}

impl DatabaseService {
    pub(crate) fn server(fleet: Arc<Fleet>) -> DatabaseNodeServer<Self> {
        DatabaseNodeServer::new(Self { fleet })
    }

    fn answer(&self, id: &str) -> Result<Response<wire::Instance>, Status> {
        Ok(Response::new(describe(&*self.fleet.get(id)?)))
    }
}

fn describe(supervised: &Supervised) -> wire::Instance {
    let archiving = supervised.archiving.borrow().clone();
    view(&supervised.view.borrow(), archiving)
}

fn view(v: &View, archiving: Archiving) -> wire::Instance {
    let state = match v.state {
        State::Starting => wire::InstanceState::Starting,
        State::Running => wire::InstanceState::Running,
        State::Stopped => wire::InstanceState::Stopped,
        State::Inaccessible => wire::InstanceState::Inaccessible,
        State::Failed => wire::InstanceState::Failed,
        State::RecoveryFailed => wire::InstanceState::RecoveryFailed,
    };
    let endpoint =
        if v.state == State::Running { format!("127.0.0.1:{}", v.spec.port) } else { String::new() };
    wire::Instance {
        name: format!("instances/{}", v.spec.id),
        volume: format!("volumes/{}", v.spec.volume),
        temp_volume: format!("volumes/{}", v.spec.temp_volume),
        password_verifier: String::new(),
        state: state.into(),
        state_reason: v.reason.clone(),
        endpoint,
        wal_archive: v.spec.archive.clone().unwrap_or_default(),
        wal_archiving: v.spec.archive.as_ref().map(|_| wire::WalArchiving {
            last_file: archiving.last_file,
            reaches: archiving.reaches.map(to_wire),
            failure: archiving.failure,
        }),
        recovery: None,
        volume_size_bytes: i64::try_from(v.volume_len).unwrap_or(i64::MAX),
    }
}

fn recovery(given: wire::Recovery) -> Result<Recovery, Status> {
    let required =
        |field, text: &str| if text.is_empty() { Err(invalid(field, "is required")) } else { Ok(()) };
    required("instance.recovery.id", &given.id)?;
    required("instance.recovery.archive", &given.archive)?;
    required("instance.recovery.last_segment", &given.last_segment)?;
    let field = "instance.recovery.target_time";
    let time = given.target_time.ok_or_else(|| invalid(field, "is required"))?;
    Ok(Recovery {
        id: given.id,
        archive: given.archive,
        target_time: from_wire(&time, field)?,
        last_segment: given.last_segment,
    })
}

fn id(name: &str) -> Result<&str, Status> {
    name.strip_prefix("instances/").ok_or_else(|| invalid("name", "must be of the form instances/{instance}"))
}

fn volume(name: &str, field: &'static str) -> Result<String, Status> {
    name.parse::<VolumeName>().map(|n| n.id().to_owned()).map_err(|e| invalid(field, e))
}

#[tonic::async_trait]
impl DatabaseNode for DatabaseService {
    async fn create_instance(
        &self,
        request: Request<wire::CreateInstanceRequest>,
    ) -> Result<Response<wire::Instance>, Status> {
        let r = request.into_inner();
        let given = r.instance.ok_or_else(|| invalid("instance", "is required"))?;
        // The grammar of an id is the same everywhere.
        let id = volume(&format!("volumes/{}", r.instance_id), "instance_id")?;
        let spec = InstanceSpec {
            id: id.clone(),
            volume: volume(&given.volume, "instance.volume")?,
            temp_volume: volume(&given.temp_volume, "instance.temp_volume")?,
            password_verifier: given.password_verifier,
            port: 0,
            wanted: true,
            archive: Some(given.wal_archive).filter(|name| !name.is_empty()),
            recovery: given.recovery.map(recovery).transpose()?,
        };
        self.fleet.create(spec)?;
        self.answer(&id)
    }

    async fn get_instance(
        &self,
        request: Request<wire::GetInstanceRequest>,
    ) -> Result<Response<wire::Instance>, Status> {
        self.answer(id(&request.get_ref().name)?)
    }

    async fn list_instances(
        &self,
        request: Request<wire::ListInstancesRequest>,
    ) -> Result<Response<wire::ListInstancesResponse>, Status> {
        let r = request.into_inner();
        let (page, next_page_token) =
            cut(self.fleet.list(), r.page_size, &r.page_token, |s| s.view.borrow().spec.id.clone())?;
        Ok(Response::new(wire::ListInstancesResponse {
            instances: page.iter().map(|s| describe(s)).collect(),
            next_page_token,
        }))
    }

    async fn delete_instance(
        &self,
        request: Request<wire::DeleteInstanceRequest>,
    ) -> Result<Response<()>, Status> {
        self.fleet.remove(id(&request.get_ref().name)?).await.map(Response::new)
    }

    async fn start_instance(
        &self,
        request: Request<wire::StartInstanceRequest>,
    ) -> Result<Response<wire::Instance>, Status> {
        let id = id(&request.get_ref().name)?;
        self.fleet.get(id)?.commands.send(Command::Start).await.map_err(|_| internal())?;
        self.answer(id)
    }

    async fn stop_instance(
        &self,
        request: Request<wire::StopInstanceRequest>,
    ) -> Result<Response<wire::Instance>, Status> {
        let id = id(&request.get_ref().name)?;
        let (done, stopped) = oneshot::channel();
        self.fleet.get(id)?.commands.send(Command::Stop(true, done)).await.map_err(|_| internal())?;
        stopped.await.map_err(|_| internal())?;
        self.answer(id)
    }

    async fn link_workers(
        &self,
        request: Request<wire::LinkWorkersRequest>,
    ) -> Result<Response<wire::Instance>, Status> {
        let r = request.into_inner();
        let id = id(&r.name)?;
        let (answer, linked) = oneshot::channel();
        let workers = r.workers.into_iter().map(|w| (w.server, w.endpoint)).collect();
        self.fleet.get(id)?.commands.send(Command::Link(workers, answer)).await.map_err(|_| internal())?;
        linked.await.map_err(|_| internal())??;
        self.answer(id)
    }
}
