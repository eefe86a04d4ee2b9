//! Golden scripts: a few replicas, a network and disks that do only what the script says. Each script opens with its rule.
//!
//! Commands, for replicas `r1`, `r2`, …:
//!
//! | command | what it does |
//! |---|---|
//! | `voters N [slow-disk=MS]` | N new replicas, nothing elected |
//! | `join rX` | one more replica with an empty disk, whose slot will be X |
//! | `change rX add N`, `change rX promote rY`, `change rX remove rY` | asks X for a change; N is the newcomer's identity |
//! | `membership rX` | the newest configuration that it knows to be committed |
//! | `time MS [rX …]` | lets time pass, then ticks these replicas, or all that run |
//! | `propose rX WORD …` | one block per word |
//! | `sync rX` | everything queued there is on the disk |
//! | `deliver [from=rX] [to=rY] [kind=Word] [max=N]` | delivers what is under way, oldest first; answers stay under way |
//! | `drop [from=rX] [to=rY] [kind=Word]` | loses it |
//! | `cut rX rY` / `heal` | nothing gets through any more from X to Y / all get through |
//! | `settle` | delivers and syncs until nothing is under way |
//! | `power-cut rX`, `restart rX` | what was not synced is gone / starts from the disk |
//! | `read rX ID`, `hand-over rX [rY]` | as named |
//! | `say rX to=rY …` | a forged message: `timeout=ROUND.SLOT`, `ack=H`, `reply=ROUND` (round), `committed=H`, `hand-over=ROUND.SLOT`, `pre-check=ROUND.SLOT` |
//! | `fence rX`, `unfence rX` | tells the rules that the state is in doubt / no longer |
//! | `applied rX` | tells the rules that what is committed is applied |
//! | `snapshot rX` | applies what is committed there, has a snapshot of it on the disk, and offers it |
//! | `forget rX` | the log below the snapshot goes |
//! | `install rX [fails]` | the snapshot that it wants has arrived and is durable / cannot be had |
//! | `status` | one line per replica |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::fmt::Write as _;

use goldenscript::{Command, Context, Runner};
use lockstep_consensus::{
    Effects, Envelope, Input, Membership, Message, Moment, Options, ReadId, Record, RecordSeq, Recovered, Replica,
    Serve,
};
use lockstep_types::block::encode_body;
use lockstep_types::{
    Block, BlockRef, Change, Configuration, Digest, FaultModel, Genesis, Height, LogTime, ReplicaId, ServiceId, Slot,
    SnapshotRef, View,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

const SERVICE: ServiceId = ServiceId::from_bytes([7; 16]);

#[derive(Default)]
struct Host {
    core: Option<Replica>,
    synced: Vec<Record>,
    queued: Vec<(RecordSeq, Record)>,
    promised: Vec<(RecordSeq, Envelope)>,
    durable: RecordSeq,
    blocks: BTreeMap<Height, Block>,
    applied: Height,
    /// The newest snapshot on the disk, with the log time of its block and the configuration above it.
    snapshot: Option<(SnapshotRef, LogTime, Configuration)>,
    /// The snapshot that the rules asked for.
    wanted: Option<SnapshotRef>,
}

#[derive(Default)]
struct World {
    config: Option<Configuration>,
    hosts: BTreeMap<Slot, Host>,
    network: VecDeque<(Slot, Envelope)>,
    cuts: BTreeSet<(Slot, Slot)>,
    now: Moment,
    options: Options,
    out: String,
}

impl World {
    fn voters(&mut self, count: u8, slow_disk: Option<u64>) {
        let genesis = Genesis {
            service: SERVICE,
            fault_model: FaultModel::Crash,
            voters: (1..=count).map(|number| ReplicaId::from_bytes([number; 16])).collect(),
            machine: "KeyValue".into(),
            sessions_max: 1,
            reply_bytes_max: 1,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        };
        *self =
            World { config: Some(genesis.configuration()), now: Moment::from_micros(1_000_000), ..World::default() };
        self.options.window = 4;
        self.options.slow_disk = slow_disk.map_or(self.options.slow_disk, |ms| ms * 1_000);
        for slot in (1..=count).map(|number| Slot::new(number.into())) {
            self.hosts.insert(slot, Host::default());
            self.restart(slot);
        }
    }

    fn restart(&mut self, slot: Slot) {
        let config = self.config.clone().expect("voters first");
        let host = self.hosts.get_mut(&slot).expect("a replica of this script");
        let mut recovered = match host.snapshot.clone() {
            Some((snapshot, log_time, configuration)) => Recovered::above(snapshot.block, log_time, configuration),
            None => Recovered::new(config),
        };
        host.blocks.clear();
        host.wanted = None;
        for record in &host.synced {
            match record {
                Record::Block(block) => {
                    if recovered.block(block.header(), block.hash()) {
                        host.blocks.split_off(&block.height());
                        host.blocks.insert(block.height(), block.clone());
                    }
                }
                Record::Base(block) => recovered.base(*block),
                Record::Promise(promise) => recovered.promise(*promise),
            }
        }
        assert_eq!(recovered.missing(), None, "the log holds a chain");
        host.core = Some(Replica::start(SERVICE, slot, self.options.clone(), recovered, self.now));
    }

    fn step(&mut self, slot: Slot, input: Input) {
        let now = self.now;
        let Some(core) = self.hosts.get_mut(&slot).and_then(|host| host.core.as_mut()) else { return };
        let effects = core.step(now, input);
        self.absorb(slot, effects);
    }

    fn absorb(&mut self, slot: Slot, effects: Effects) {
        let Effects { send, persist, send_after, serve, install, proposed: _, committed, reads, rejected } = effects;
        if let Some(reject) = rejected {
            writeln!(self.out, "{slot} refuses: {reject}").unwrap();
        }
        for envelope in send {
            writeln!(self.out, "{slot}{envelope}").unwrap();
            self.network.push_back((slot, envelope));
        }
        let host = self.hosts.get_mut(&slot).expect("a replica of this script");
        for (seq, record) in persist {
            match &record {
                Record::Block(block) => {
                    host.blocks.split_off(&block.height());
                    host.blocks.insert(block.height(), block.clone());
                    let change = block.header().change.map_or(String::new(), |change| format!(" ({change})"));
                    writeln!(self.out, "{slot} queues {seq} block {block}{change}").unwrap();
                }
                Record::Base(block) => writeln!(self.out, "{slot} queues {seq} base {block}").unwrap(),
                Record::Promise(promise) => writeln!(self.out, "{slot} queues {seq} {promise}").unwrap(),
            }
            host.queued.push((seq, record));
        }
        for (seq, envelope) in send_after {
            if seq <= host.durable {
                writeln!(self.out, "{slot}{envelope}").unwrap();
                self.network.push_back((slot, envelope));
            } else {
                writeln!(self.out, "{slot} promises after {seq}: {envelope}").unwrap();
                host.promised.push((seq, envelope));
            }
        }
        if let Some(block) = committed {
            writeln!(self.out, "{slot} commits {block}").unwrap();
        }
        if let Some((from, snapshot)) = install {
            writeln!(self.out, "{slot} wants {snapshot} of {from}").unwrap();
            host.wanted = Some(snapshot);
        }
        for (id, outcome) in reads {
            writeln!(self.out, "{slot} read {} {outcome:?}", id.0).unwrap();
        }
        for Serve { to, after, upto, committed } in serve {
            let blocks = host.blocks.range(after.next()..=upto).map(|(_, block)| block.clone()).collect();
            let epoch = host.core.as_ref().expect("it just stepped").config().epoch();
            let envelope = Envelope { to, epoch, message: Message::Fetched { after, blocks: Ok(blocks), committed } };
            writeln!(self.out, "{slot}{envelope}").unwrap();
            self.network.push_back((slot, envelope));
        }
    }

    fn sync(&mut self, slot: Slot) -> bool {
        let host = self.hosts.get_mut(&slot).expect("a replica of this script");
        let Some(last) = host.queued.last().map(|(seq, _)| *seq) else { return false };
        host.durable = last;
        host.synced.extend(host.queued.drain(..).map(|(_, record)| record));
        for (_, envelope) in std::mem::take(&mut host.promised) {
            writeln!(self.out, "{slot}{envelope}").unwrap();
            self.network.push_back((slot, envelope));
        }
        self.step(slot, Input::Durable(last));
        true
    }

    fn deliver(&mut self, from: Slot, envelope: Envelope) {
        if self.cuts.contains(&(from, envelope.to)) {
            return;
        }
        let Envelope { to, epoch, message } = envelope;
        self.step(to, Input::Receive { from, epoch, message });
    }

    /// Takes what is under way and matches out of the network.
    fn take(&mut self, filter: &Filter) -> Vec<(Slot, Envelope)> {
        let (taken, rest): (Vec<_>, Vec<_>) =
            self.network.drain(..).partition(|(from, envelope)| filter.matches(*from, envelope));
        let (now, later) = taken.split_at(filter.max.unwrap_or(taken.len()).min(taken.len()));
        self.network = later.iter().cloned().chain(rest).collect();
        now.to_vec()
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            let slots: Vec<Slot> = self.hosts.keys().copied().collect();
            let synced = slots.into_iter().filter(|slot| self.sync(*slot)).count() > 0;
            let messages: Vec<_> = self.network.drain(..).collect();
            if messages.is_empty() && !synced {
                return;
            }
            for (from, envelope) in messages {
                self.deliver(from, envelope);
            }
        }
        panic!("the replicas never come to rest");
    }
}

#[derive(Default)]
struct Filter {
    from: Option<Slot>,
    to: Option<Slot>,
    kind: Option<String>,
    max: Option<usize>,
}

impl Filter {
    fn matches(&self, from: Slot, envelope: &Envelope) -> bool {
        let text = envelope.message.to_string();
        self.from.is_none_or(|slot| slot == from)
            && self.to.is_none_or(|slot| slot == envelope.to)
            && self.kind.as_ref().is_none_or(|kind| text.split(' ').next() == Some(kind))
    }
}

fn slot(text: &str) -> Outcome<Slot> {
    Ok(Slot::new(text.strip_prefix('r').ok_or_else(|| format!("{text} is no replica"))?.parse()?))
}

fn view(text: &str) -> Outcome<View> {
    let (round, leader) = text.split_once('.').ok_or("a view is ROUND.SLOT")?;
    Ok(View::new(round.parse()?, Slot::new(leader.parse()?)))
}

impl Runner for World {
    type Command = Command;

    fn run(&mut self, command: &Command, _context: &Context) -> Outcome<String> {
        let mut args = command.consume_args();
        match command.name.as_str() {
            "voters" => {
                let count = args.next_pos().ok_or("how many?")?.parse()?;
                let slow_disk = args.take_key("slow-disk").map(str::parse).transpose()?;
                self.voters(count, slow_disk);
            }
            "time" => {
                let ms: u64 = args.next_pos().ok_or("how long?")?.parse()?;
                let some = rest(&mut args).map(slot).collect::<Outcome<Vec<_>>>()?;
                self.now = self.now.plus(ms * 1_000);
                let all: Vec<Slot> = self.hosts.keys().copied().collect();
                for slot in if some.is_empty() { all } else { some } {
                    self.step(slot, Input::Tick);
                }
            }
            "propose" => {
                let at = slot(args.next_pos().ok_or("where?")?)?;
                for word in rest(&mut args) {
                    let body = encode_body(&[word.to_owned().into_bytes().into()]);
                    let wall = LogTime::from_millis(1_700_000_000_000 + self.now.as_micros() / 1_000);
                    self.step(at, Input::Propose { body, wall });
                }
            }
            "join" => {
                let at = slot(args.next_pos().ok_or("who?")?)?;
                self.hosts.insert(at, Host::default());
                self.restart(at);
            }
            "change" => {
                let at = slot(args.next_pos().ok_or("where?")?)?;
                let kind = args.next_pos().ok_or("what?")?;
                let whom = args.next_pos().ok_or("whom?")?;
                let change = match kind {
                    "add" => Change::AddStandby { replica: ReplicaId::from_bytes([whom.parse()?; 16]) },
                    "promote" => Change::Promote { slot: slot(whom)? },
                    "remove" => Change::Remove { slot: slot(whom)? },
                    kind => return Err(format!("{kind} is no change").into()),
                };
                self.step(at, Input::Change(change));
            }
            "membership" => {
                let at = slot(args.next_pos().ok_or("where?")?)?;
                let core = self.hosts[&at].core.as_ref().ok_or("it is down")?;
                let Membership { configuration, height, settled } = core.membership();
                let settled = if settled { "settled" } else { "not settled" };
                writeln!(self.out, "{at} knows {configuration}, since {height}, {settled}").unwrap();
            }
            "sync" => {
                for arg in rest(&mut args) {
                    self.sync(slot(arg)?);
                }
            }
            "deliver" | "drop" => {
                let filter = Filter {
                    from: args.take_key("from").map(slot).transpose()?,
                    to: args.take_key("to").map(slot).transpose()?,
                    kind: args.take_key("kind").map(str::to_owned),
                    max: args.take_key("max").map(str::parse).transpose()?,
                };
                for (from, envelope) in self.take(&filter) {
                    if command.name == "deliver" {
                        self.deliver(from, envelope);
                    }
                }
            }
            "cut" => {
                let from = slot(args.next_pos().ok_or("from whom?")?)?;
                let to = slot(args.next_pos().ok_or("to whom?")?)?;
                self.cuts.insert((from, to));
            }
            "heal" => self.cuts.clear(),
            "settle" => self.settle(),
            "power-cut" => {
                let at = slot(args.next_pos().ok_or("which?")?)?;
                let host = self.hosts.get_mut(&at).expect("a replica of this script");
                let synced = std::mem::take(&mut host.synced);
                *host = Host { synced, snapshot: host.snapshot.take(), ..Host::default() };
            }
            "restart" => {
                let at = slot(args.next_pos().ok_or("which?")?)?;
                self.restart(at);
                self.step(at, Input::Tick);
            }
            "read" => {
                let at = slot(args.next_pos().ok_or("where?")?)?;
                let id = args.next_pos().ok_or("which?")?.parse()?;
                self.step(at, Input::Read(ReadId(id)));
            }
            "hand-over" => {
                let at = slot(args.next_pos().ok_or("who?")?)?;
                let target = args.next_pos().map(slot).transpose()?;
                self.step(at, Input::HandOver { target });
            }
            "applied" => {
                let at = slot(args.next_pos().ok_or("where?")?)?;
                let host = self.hosts.get_mut(&at).expect("a replica of this script");
                let height = host.core.as_ref().ok_or("it is down")?.committed().height;
                host.applied = height;
                self.step(at, Input::Applied { height, digest: Digest::ZERO });
            }
            "fence" | "unfence" => {
                let at = slot(args.next_pos().ok_or("where?")?)?;
                self.step(at, Input::Fence(command.name == "fence"));
            }
            "snapshot" => {
                let at = slot(args.next_pos().ok_or("where?")?)?;
                let host = self.hosts.get_mut(&at).expect("a replica of this script");
                let core = host.core.as_ref().ok_or("it is down")?;
                let block = core.committed();
                host.applied = block.height;
                let snapshot = SnapshotRef { block, manifest: block.hash };
                let configuration = core.chain().configuration_above(block.height).clone();
                host.snapshot = Some((snapshot, host.blocks[&block.height].header().log_time, configuration));
                self.step(at, Input::Applied { height: block.height, digest: Digest::ZERO });
                self.step(at, Input::Offer(snapshot));
            }
            "forget" => {
                let at = slot(args.next_pos().ok_or("where?")?)?;
                let host = self.hosts.get_mut(&at).expect("a replica of this script");
                let (snapshot, _, _) = host.snapshot.clone().ok_or("it has no snapshot")?;
                // The log goes from its beginning on: what was replaced later stays, above what it hung on.
                host.synced.retain(|record| match record {
                    Record::Block(block) => block.height() > snapshot.block.height,
                    Record::Base(_) | Record::Promise(_) => true,
                });
                self.step(at, Input::Forget(snapshot.block.height));
            }
            "install" => {
                let at = slot(args.next_pos().ok_or("where?")?)?;
                let fails = args.next_pos().is_some_and(|word| word == "fails");
                let host = self.hosts.get_mut(&at).expect("a replica of this script");
                let wanted = host.wanted.take().ok_or("it wants no snapshot")?;
                if fails {
                    self.step(at, Input::InstallFailed);
                } else {
                    let mut held = self.hosts.values().filter_map(|host| host.snapshot.clone());
                    let holder = held.find(|(held, _, _)| *held == wanted);
                    let (snapshot, log_time, configuration) = holder.ok_or("nobody holds it")?;
                    let host = self.hosts.get_mut(&at).expect("a replica of this script");
                    host.snapshot = Some((snapshot, log_time, configuration.clone()));
                    host.applied = snapshot.block.height;
                    self.step(at, Input::Installed { snapshot, log_time, configuration });
                    self.step(at, Input::Applied { height: snapshot.block.height, digest: Digest::ZERO });
                }
            }
            "say" => {
                let from = slot(args.next_pos().ok_or("who?")?)?;
                let to = slot(args.take_key("to").ok_or("to whom?")?)?;
                let core = self.hosts[&to].core.as_ref().ok_or("it is down")?;
                let (now_view, epoch, head) = (core.view(), core.config().epoch(), core.head());
                let message = if let Some(arg) = args.take_key("timeout") {
                    Message::Timeout { view: view(arg)?, rank: BlockRef::GENESIS, faults: Vec::new() }
                } else if let Some(arg) = args.take_key("reply") {
                    Message::HeartbeatReply { view: now_view, round: arg.parse()? }
                } else if let Some(arg) = args.take_key("ack") {
                    let height = Height::new(arg.parse()?);
                    let hash = Digest::of(b"another chain");
                    Message::Ack { view: now_view, height, hash, applied: Height::ZERO, digest: Digest::ZERO }
                } else if let Some(arg) = args.take_key("committed") {
                    let height = Height::new(arg.parse()?);
                    let committed = BlockRef { view: now_view, height, hash: Digest::of(b"another chain") };
                    Message::Heartbeat { view: now_view, round: 1, head, committed, acknowledged: head.height }
                } else if let Some(arg) = args.take_key("heartbeat") {
                    let view = view(arg)?;
                    let committed = BlockRef::GENESIS;
                    Message::Heartbeat { view, round: 1, head, committed, acknowledged: head.height }
                } else if let Some(arg) = args.take_key("pre-check") {
                    Message::PreCheck { view: view(arg)? }
                } else if let Some(arg) = args.take_key("hand-over") {
                    Message::HandOver { view: now_view, next: view(arg)? }
                } else {
                    return Err("say what?".into());
                };
                let epoch = match args.take_key("epoch") {
                    Some(other) => lockstep_types::Epoch::new(other.parse()?),
                    None => epoch,
                };
                self.step(to, Input::Receive { from, epoch, message });
            }
            "status" => {
                for (slot, host) in &self.hosts {
                    match &host.core {
                        Some(core) => writeln!(self.out, "{core}").unwrap(),
                        None => writeln!(self.out, "{slot} down").unwrap(),
                    }
                }
            }
            name => return Err(format!("unknown command {name}").into()),
        }
        args.reject_next()?;
        Ok(std::mem::take(&mut self.out))
    }
}

fn rest<'a, 'b>(args: &'b mut goldenscript::ArgumentConsumer<'a>) -> impl Iterator<Item = &'a str> + use<'a, 'b> {
    std::iter::from_fn(|| args.next_pos())
}

#[test]
fn scripts_run_as_written() {
    // `tests/mutants` runs one script at a time, against rules with a line taken out.
    let only = std::env::var("LOCKSTEP_SCRIPT").ok();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts");
    let mut scripts: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder of scripts")
        .map(|entry| entry.expect("a script").path())
        .filter(|path| path.extension().is_none())
        .filter(|path| only.as_ref().is_none_or(|only| path.ends_with(only)))
        .collect();
    scripts.sort();
    assert!(!scripts.is_empty(), "no script {only:?} in {}", folder.display());
    for script in scripts {
        println!("{}", script.display());
        goldenscript::run(&mut World::default(), &script)
            .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    }
}
