//! Starts the replicas of a service as processes, each on a loopback address of its own, so that no two tests share a port.

use std::fs::{self, File};
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use lockstep_types::{FaultModel, Genesis, ReplicaId, ServiceId};
use lockstep_wire::v1::admin_client::AdminClient;
use lockstep_wire::v1::client_client::ClientClient;
use lockstep_wire::v1::key_value_client::KeyValueClient;
use lockstep_wire::v1::{self, GenesisRequest, StatusRequest};
use lockstep_wire::{ReplicaStatus, Role, limits};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Long enough for the slowest machine; no test waits for it to pass.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The admin token of all services here.
pub const TOKEN: &str = "a token for tests";

/// Waits until `probe` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A loopback address that no other test uses.
pub fn address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(last < 255, "more replicas than addresses");
    Ipv4Addr::new(127, (high % 254) + 1, low, last)
}

/// One replica: its directory, its address, and the process while it runs.
pub struct Replica {
    pub ip: Ipv4Addr,
    pub data: PathBuf,
    log: PathBuf,
    options: Vec<String>,
    /// Bytes of a file system of its own, in memory, for the data.
    disk: Option<u32>,
    child: Option<Child>,
}

impl Replica {
    fn new(dir: &TempDir, ip: Ipv4Addr, peers: &str) -> Self {
        let data = dir.path().join(format!("data-{ip}"));
        let log = dir.path().join(format!("log-{ip}"));
        let options = vec![
            format!("--data-dir={}", data.display()),
            format!("--client-listen={ip}:{}", limits::CLIENT_PORT),
            format!("--peer-listen={ip}:{}", limits::PEER_PORT),
            format!("--metrics-listen={ip}:{}", limits::METRICS_PORT),
            format!("--peers={peers}"),
            format!("--admin-token={TOKEN}"),
            // Zero-filling the default takes longer than most tests here.
            format!("--segment-bytes={}", 8 << 20),
            format!("--parent-pid={}", std::process::id()),
            "--log-level=debug,h2=info,hyper=info,tower=info".to_owned(),
        ];
        Replica { ip, data, log, options, disk: None, child: None }
    }

    /// Sets an option, `--name=value`, for the next start.
    pub fn option(&mut self, option: &str) {
        let (name, _) = option.split_once('=').expect("options here have values");
        self.options.retain(|other| other.split_once('=').is_none_or(|(other, _)| other != name));
        self.options.push(option.to_owned());
    }

    /// From the next start on the data lies on a disk of so many bytes, which is gone when the replica ends. Takes the right
    /// to make namespaces; says whether it is there.
    pub fn small_disk(&mut self, bytes: u32) -> bool {
        fs::create_dir_all(&self.data).expect("a new directory");
        self.disk = Some(bytes);
        let namespaces = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
        namespaces.is_ok_and(|status| status.success())
    }

    fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_lockstep-replica");
        let Some(bytes) = self.disk else { return Command::new(program) };
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs -o size=$1 tmpfs \"$2\" && shift 2 && exec \"$@\"";
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command.arg(bytes.to_string()).arg(&self.data).arg(program);
        command
    }

    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).expect("a file in a new directory");
        let child = self
            .command()
            .args(&self.options)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        assert!(self.child.is_none(), "{} runs already", self.ip);
        self.child = Some(child.expect("the binary was built"));
    }

    /// Moves the data away and gives the path: what is left is a replica with an empty disk. Not while it runs.
    pub fn lose_disk(&mut self) -> PathBuf {
        assert!(self.child.is_none(), "{} runs", self.ip);
        let kept = self.data.with_extension("kept");
        fs::rename(&self.data, &kept).expect("a directory of our own");
        kept
    }

    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("our own child").is_none())
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).expect("our own child");
    }

    /// Waits until the process has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("our own child") {
                self.child = None;
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "{} does not end", self.ip);
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// What it logged since its first start.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn client_address(&self) -> String {
        format!("{}:{}", self.ip, limits::CLIENT_PORT)
    }

    pub fn peer_address(&self) -> String {
        format!("{}:{}", self.ip, limits::PEER_PORT)
    }

    pub fn metrics_address(&self) -> String {
        format!("{}:{}", self.ip, limits::METRICS_PORT)
    }

    pub fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.client_address())).expect("an address");
        endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(20)).connect_lazy()
    }

    pub fn kv(&self) -> KeyValueClient<Channel> {
        KeyValueClient::new(self.channel())
    }

    pub fn client(&self) -> ClientClient<Channel> {
        ClientClient::new(self.channel()).max_decoding_message_size(limits::FRAME_BYTES_MAX)
    }

    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel())
    }

    pub async fn status(&self) -> Option<ReplicaStatus> {
        let answer = timeout(Duration::from_secs(2), self.admin().status(StatusRequest {})).await.ok()?.ok()?;
        Some(ReplicaStatus::try_from(answer.into_inner()).expect("a status that makes sense"))
    }

    pub async fn up(&self) -> ReplicaStatus {
        eventually("the replica answers", || self.status()).await
    }

    pub async fn put(&self, key: &str, value: &str) -> Result<u64, Status> {
        let put = v1::PutRequest { key: key.to_owned().into(), value: value.to_owned().into() };
        self.kv().put(put).await.map(|answer| answer.into_inner().version)
    }

    pub async fn get(&self, key: &str) -> Result<Option<String>, Status> {
        let answer = self.kv().get(v1::GetRequest { key: key.to_owned().into() }).await?.into_inner();
        Ok(answer.found.then(|| String::from_utf8(answer.value.to_vec()).expect("text was put")))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.ip, self.log());
        }
    }
}

/// A service of several replicas.
pub struct Service {
    pub replicas: Vec<Replica>,
    pub genesis: Option<Genesis>,
    dir: TempDir,
}

impl Service {
    /// Replicas that run and have no genesis.
    pub async fn unborn(count: usize) -> Self {
        let mut service = Self::stopped(count);
        service.replicas.iter_mut().for_each(Replica::start);
        for replica in &service.replicas {
            replica.up().await;
        }
        service
    }

    /// Replicas that were never started.
    pub fn stopped(count: usize) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let ips: Vec<Ipv4Addr> = (0..count).map(|_| address()).collect();
        let peers: Vec<String> = ips.iter().map(|ip| format!("{ip}:{}", limits::PEER_PORT)).collect();
        let replicas = ips.iter().map(|ip| Replica::new(&dir, *ip, &peers.join(","))).collect();
        Service { replicas, genesis: None, dir }
    }

    /// Replicas of a service that was born and has a leader.
    pub async fn born(count: usize) -> Self {
        Self::born_with(count, |_| {}).await
    }

    /// The same with another genesis.
    pub async fn born_with(count: usize, change: impl FnOnce(&mut Genesis)) -> Self {
        let mut service = Self::unborn(count).await;
        service.give_birth_with(change).await;
        service.leader().await;
        service
    }

    /// One more replica that was never started, at an address of its own that nobody was told of. Gives its index.
    pub fn newcomer(&mut self) -> usize {
        let peers: Vec<String> = self.replicas.iter().map(Replica::peer_address).collect();
        let mut replica = Replica::new(&self.dir, address(), &peers.join(","));
        let advertised = replica.peer_address();
        replica.option(&format!("--advertise-peer={advertised}"));
        self.replicas.push(replica);
        self.replicas.len() - 1
    }

    /// Makes a genesis of all replicas and gives it to each.
    pub async fn give_birth(&mut self) {
        self.give_birth_with(|_| {}).await;
    }

    async fn give_birth_with(&mut self, change: impl FnOnce(&mut Genesis)) {
        let mut voters = Vec::new();
        for replica in &self.replicas {
            voters.push(replica.up().await.replica);
        }
        let mut genesis = genesis(1, voters);
        change(&mut genesis);
        for replica in &self.replicas {
            assert!(offer(replica, &genesis, TOKEN).await.expect("a genesis that fits"), "it is new");
        }
        self.genesis = Some(genesis);
    }

    /// Waits until all replicas that run agree on a leader that runs; gives its index.
    pub async fn leader(&mut self) -> usize {
        let running: Vec<usize> = (0..self.replicas.len()).filter(|index| self.replicas[*index].runs()).collect();
        let replicas = &self.replicas;
        eventually("all replicas follow one leader", || async {
            let mut leads = None;
            let mut named = Vec::new();
            for index in &running {
                let status = replicas[*index].status().await?;
                if status.role == Role::Leader {
                    leads = Some((*index, status.replica));
                }
                named.push(status.leader?);
                status.is_ready().then_some(())?;
            }
            let (index, leader) = leads?;
            named.iter().all(|named| *named == leader).then_some(index)
        })
        .await
    }
}

/// A genesis with these voters; `number` makes its service id.
pub fn genesis(number: u8, voters: Vec<ReplicaId>) -> Genesis {
    Genesis {
        service: ServiceId::from_bytes([number; 16]),
        fault_model: FaultModel::Crash,
        voters,
        machine: "KeyValue".to_owned(),
        sessions_max: Genesis::SESSIONS_MAX,
        reply_bytes_max: Genesis::REPLY_BYTES_MAX,
        snapshot_bytes: Genesis::SNAPSHOT_BYTES,
    }
}

/// Offers a genesis; gives whether it was new.
pub async fn offer(replica: &Replica, genesis: &Genesis, token: &str) -> Result<bool, Status> {
    let request = with_token(GenesisRequest { genesis: genesis.encode().into() }, token);
    replica.admin().genesis(request).await.map(|answer| answer.into_inner().created)
}

pub fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("printable"));
    request
}
