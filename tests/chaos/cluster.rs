//! RabbitMQ: one node, or several whose connections to each other go through proxies.
//!
//! Erlang's nodes ask epmd, the port mapper, where another node listens
//! (<https://www.erlang.org/doc/apps/erts/erl_dist_protocol.html>). Here each node has an epmd of
//! its own, and what it is told there about the others is where a proxy listens.

use std::{collections::BTreeSet, path::Path, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::block_in_place,
};

use crate::{
    proxy::{Mode, Proxy},
    stage::authority,
    support::{OwnServer, World, http_client, wait_for},
};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// A node that sees no majority of the others stops serving until it does, so that its clients go
/// to those that do (<https://www.rabbitmq.com/docs/partitions>). It notices within the tick time,
/// in seconds.
const SETTINGS: &str = "cluster_partition_handling = pause_minority\nnet_ticktime = 5\n";
/// An expired message whose way back to the jobs was cut is sent again after this time, in
/// milliseconds, and not after the three minutes that RabbitMQ takes otherwise.
const ADVANCED_SETTINGS: &str =
    "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}].\n";

pub(crate) struct Cluster {
    /// A node stays registered as long as the connection to epmd lasts. They end first: epmd
    /// outlives no test then.
    _registrations: Vec<TcpStream>,
    nodes: Vec<OwnServer>,
    /// From the first node to the second.
    wires: Vec<(usize, usize, Proxy)>,
    amqp: Proxy,
    management: Proxy,
}

impl Cluster {
    pub(crate) async fn start(size: usize) -> Self {
        let nodes: Vec<_> =
            NAMES[..size].iter().map(|_| OwnServer::not_started("rabbitmq")).collect();
        if size > 1 {
            for (node, name) in nodes.iter().zip(NAMES) {
                prepare(&node.path(), name);
            }
        }
        block_in_place(|| {
            std::thread::scope(|scope| {
                for node in &nodes {
                    scope.spawn(|| node.run("start", &[]));
                }
            });
        });
        let (mut wires, mut registrations) = (Vec::new(), Vec::new());
        for from in 0..size {
            for to in (0..size).filter(|to| *to != from) {
                let proxy =
                    Proxy::start(vec![format!("127.0.0.1:{}", port(&nodes[to], "dist-port"))])
                        .await;
                registrations.push(
                    register(port(&nodes[from], "epmd-port"), NAMES[to], proxy.addr().port()).await,
                );
                wires.push((from, to, proxy));
            }
        }
        for node in &nodes[1..] {
            let join: [&[&str]; 3] =
                [&["stop_app"], &["join_cluster", "a@localhost"], &["start_app"]];
            block_in_place(|| join.map(|arguments| node.run("ctl", arguments)));
        }
        let all = |url: fn(&OwnServer) -> String| {
            nodes.iter().map(|node| authority(&url(node)).to_owned()).collect()
        };
        let (amqp, management) = (
            Proxy::start(all(OwnServer::url)).await,
            Proxy::start(all(OwnServer::management_url)).await,
        );
        Self { _registrations: registrations, nodes, wires, amqp, management }
    }

    pub(crate) fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Leads to the first node that takes connections.
    pub(crate) fn url(&self) -> String {
        let url = self.nodes[0].url();
        url.replace(authority(&url), &self.amqp.addr().to_string())
    }

    /// The same for the management API.
    pub(crate) fn management_url(&self) -> String {
        let url = self.nodes[0].management_url();
        url.replace(authority(&url), &self.management.addr().to_string())
    }

    /// `host:port` of the nodes, from `first` on.
    pub(crate) fn authorities(&self, first: usize) -> Vec<String> {
        let nodes = self.nodes.iter().cycle().skip(first % self.size()).take(self.size());
        nodes.map(|node| authority(&node.url()).to_owned()).collect()
    }

    pub(crate) fn restart(&self) {
        self.nodes.iter().for_each(OwnServer::restart);
    }

    /// Ends a node at once, with nothing written down that was not before, and starts it again.
    pub(crate) fn kill(&self, node: usize) {
        block_in_place(|| self.nodes[node].run("kill", &[]));
        self.nodes[node].start_again();
    }

    pub(crate) fn set_memory_alarm(&self, is_on: bool) {
        self.nodes.iter().for_each(|node| node.set_memory_alarm(is_on));
    }

    /// Runs rabbitmqctl on every node.
    pub(crate) fn control(&self, arguments: &[&str]) {
        block_in_place(|| self.nodes.iter().for_each(|node| drop(node.run("ctl", arguments))));
    }

    /// Lets nothing through between a node and all others until they have given it up, and for a
    /// while longer. Then what was held back is lost.
    pub(crate) async fn isolate(&self, node: usize, longer: Duration) {
        let wires = || {
            self.wires
                .iter()
                .filter(|(from, to, _)| [*from, *to].contains(&node))
                .map(|(_, _, proxy)| proxy)
        };
        wires().for_each(|proxy| proxy.set(Mode::Stall));
        let other = self.nodes[(node + 1) % self.size()].management_url();
        wait_for("the others to give the node up", || async {
            let nodes = ask(&format!("{other}/api/nodes")).await?;
            let name = format!("{}@localhost", NAMES[node]);
            nodes
                .as_array()?
                .iter()
                .any(|node| node["name"] == name && node["running"] == false)
                .then_some(())
        })
        .await;
        tokio::time::sleep(longer).await;
        for proxy in wires() {
            proxy.cut();
            proxy.set(Mode::Pass);
        }
    }

    /// Waits until every queue has all nodes, and tells which of them lead queues.
    pub(crate) async fn wait_until_whole(&self, world: &World) -> BTreeSet<usize> {
        wait_for("every queue to have a member on every node", || self.leaders(world)).await
    }

    async fn leaders(&self, world: &World) -> Option<BTreeSet<usize>> {
        let queues = ask(&format!("{}/api/queues/{}", world.management_url, world.vhost)).await?;
        let mut leaders = BTreeSet::new();
        for queue in queues.as_array()? {
            if queue["online"].as_array()?.len() < self.size() {
                return None;
            }
            let leader = queue["leader"].as_str()?.split('@').next()?;
            leaders.insert(NAMES.iter().position(|name| *name == leader)?);
        }
        Some(leaders)
    }
}

/// Asks the management API, over a connection of its own: one that is kept may lead to a node that
/// has died.
async fn ask(url: &str) -> Option<Value> {
    let answer = http_client().get(url).send().await.ok()?.text().await.ok()?;
    serde_json::from_str(&answer).ok()
}

fn prepare(folder: &Path, name: &str) {
    let write = |file: &str, content: &str| {
        std::fs::write(folder.join(file), content).expect("the folder is ours")
    };
    std::fs::create_dir_all(folder.join("conf.d")).expect("the folder is ours");
    write("name", name);
    write("conf.d/cluster.conf", SETTINGS);
    write("advanced.config", ADVANCED_SETTINGS);
    // Whoever knows it may talk to the node; Erlang insists that nobody else can read it.
    write(".erlang.cookie", "chaos");
    let secret = std::os::unix::fs::PermissionsExt::from_mode(0o400);
    std::fs::set_permissions(folder.join(".erlang.cookie"), secret).expect("the file is ours");
}

fn port(node: &OwnServer, file: &str) -> u16 {
    let text = std::fs::read_to_string(node.path().join(file)).expect("written at the first start");
    text.trim().parse().expect("a port")
}

/// Tells the epmd on `epmd` that the node `name` listens on `port`: ALIVE2_REQ, and ALIVE2_RESP or
/// ALIVE2_X_RESP.
async fn register(epmd: u16, name: &str, port: u16) -> TcpStream {
    const NORMAL_NODE: u8 = 77;
    const VERSIONS: [u8; 4] = [0, 6, 0, 5];
    let mut request = vec![120];
    request.extend(port.to_be_bytes());
    request.extend([NORMAL_NODE, 0]);
    request.extend(VERSIONS);
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).expect("short").to_be_bytes();
    request.extend(length(name.as_bytes()));
    request.extend(name.as_bytes());
    request.extend([0, 0]);
    let mut stream = TcpStream::connect(("127.0.0.1", epmd)).await.expect("epmd answers");
    stream.write_all(&[&length(&request)[..], &request].concat()).await.expect("written");
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert!([118, 121].contains(&answer[0]) && answer[1] == 0, "epmd refused {name}: {answer:?}");
    stream
}
