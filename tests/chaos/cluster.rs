//! RabbitMQ: one node, or a cluster whose inter-node connections pass through proxies.
//!
//! Erlang nodes ask epmd, the port mapper, where another node listens
//! (<https://www.erlang.org/doc/apps/erts/erl_dist_protocol.html>). Here each node has an epmd of
//! its own, in which the other nodes are registered with the ports of proxies.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;
use test_servers::{Node, RabbitMq, Server as _};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::block_in_place,
};

use crate::{
    proxy::{Mode, Proxy},
    support::{TempServer, World, authority, http_client, wait_for},
};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// A node in a minority stops serving, so that its clients connect to the majority
/// (<https://www.rabbitmq.com/docs/partitions>). It notices within the tick time, in seconds.
const SETTINGS: &str = "cluster_partition_handling = pause_minority\nnet_ticktime = 5\n";
/// Time in milliseconds after which RabbitMQ publishes a dead-lettered message again that was not
/// confirmed. The default is three minutes.
const ADVANCED_SETTINGS: &str =
    "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}].\n";

pub(crate) struct Cluster {
    /// A node stays registered while its connection to epmd is open. Dropped first, so that epmd
    /// can stop.
    _registrations: Vec<TcpStream>,
    nodes: Vec<TempServer<RabbitMq>>,
    /// The proxy from the first node to the second.
    links: Vec<(usize, usize, Proxy)>,
    amqp: Proxy,
    management: Proxy,
}

impl Cluster {
    pub(crate) async fn start(size: usize) -> Self {
        let nodes: Vec<TempServer<RabbitMq>> =
            NAMES[..size].iter().map(|_| TempServer::new()).collect();
        for (node, name) in nodes.iter().zip(NAMES) {
            node.configure(settings_of(name)).expect("the folder is ours");
        }
        block_in_place(|| {
            std::thread::scope(|scope| {
                for node in &nodes {
                    scope.spawn(|| node.start());
                }
            });
        });
        let (mut links, mut registrations) = (Vec::new(), Vec::new());
        for from in 0..size {
            for to in (0..size).filter(|to| *to != from) {
                let port = nodes[to].distribution_port().expect("started above");
                let proxy = Proxy::start(vec![format!("127.0.0.1:{port}")]).await;
                let epmd = nodes[from].epmd_port().expect("started above");
                registrations.push(register(epmd, NAMES[to], proxy.addr().port()).await);
                links.push((from, to, proxy));
            }
        }
        for node in &nodes[1..] {
            let join: [&[&str]; 3] =
                [&["stop_app"], &["join_cluster", "a@localhost"], &["start_app"]];
            block_in_place(|| join.map(|arguments| node.control(arguments).expect("joined")));
        }
        let amqp = nodes.iter().map(|node| authority(&node.url()).to_owned()).collect();
        let management = nodes.iter().map(|node| authority(&management_url(node)).to_owned());
        let (amqp, management) =
            (Proxy::start(amqp).await, Proxy::start(management.collect()).await);
        Self { _registrations: registrations, nodes, links, amqp, management }
    }

    pub(crate) fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Connects to the first node that accepts connections.
    pub(crate) fn url(&self) -> String {
        let url = self.nodes[0].url();
        url.replace(authority(&url), &self.amqp.addr().to_string())
    }

    /// The management API of the first node that accepts connections.
    pub(crate) fn management_url(&self) -> String {
        let url = management_url(&self.nodes[0]);
        url.replace(authority(&url), &self.management.addr().to_string())
    }

    /// `host:port` of the nodes, from `first` on.
    pub(crate) fn authorities(&self, first: usize) -> Vec<String> {
        let nodes = self.nodes.iter().cycle().skip(first % self.size()).take(self.size());
        nodes.map(|node| authority(&node.url()).to_owned()).collect()
    }

    pub(crate) fn restart(&self) {
        self.nodes.iter().for_each(TempServer::restart);
    }

    /// Kills a node, and starts it again.
    pub(crate) fn kill(&self, node: usize) {
        block_in_place(|| self.nodes[node].kill()).expect("the node is running");
        self.nodes[node].start();
    }

    pub(crate) fn set_memory_alarm(&self, is_on: bool) {
        block_in_place(|| {
            for node in &self.nodes {
                node.set_memory_alarm(is_on).expect("the node is running");
            }
        });
    }

    /// Runs rabbitmqctl on every node.
    pub(crate) fn control(&self, arguments: &[&str]) {
        block_in_place(|| {
            for node in &self.nodes {
                node.control(arguments).expect("the node is running");
            }
        });
    }

    /// Partitions a node from all others until they consider it down, and for `extra_time` longer.
    /// Then the delayed data is discarded.
    pub(crate) async fn isolate(&self, node: usize, extra_time: Duration) {
        let links = || {
            self.links
                .iter()
                .filter(|(from, to, _)| [*from, *to].contains(&node))
                .map(|(_, _, proxy)| proxy)
        };
        links().for_each(|proxy| proxy.set(Mode::Stall));
        let other = management_url(&self.nodes[(node + 1) % self.size()]);
        wait_for("the others to consider the node down", || async {
            let nodes = get(&format!("{other}/api/nodes")).await?;
            let name = format!("{}@localhost", NAMES[node]);
            nodes
                .as_array()?
                .iter()
                .any(|node| node["name"] == name && node["running"] == false)
                .then_some(())
        })
        .await;
        tokio::time::sleep(extra_time).await;
        for proxy in links() {
            proxy.cut();
            proxy.set(Mode::Forward);
        }
    }

    /// Waits until every queue has a member on every node. Returns the nodes that lead queues.
    pub(crate) async fn wait_until_whole(&self, world: &World) -> BTreeSet<usize> {
        wait_for("every queue to have a member on every node", || self.leaders(world)).await
    }

    async fn leaders(&self, world: &World) -> Option<BTreeSet<usize>> {
        let queues = get(&format!("{}/api/queues/{}", world.management_url, world.vhost)).await?;
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

/// Sends a request to the management API, on a new connection: a kept one may lead to a node that
/// was killed.
async fn get(url: &str) -> Option<Value> {
    let response = http_client().get(url).send().await.ok()?.text().await.ok()?;
    serde_json::from_str(&response).ok()
}

fn settings_of(name: &str) -> Node<'_> {
    Node { name, cookie: "chaos", settings: SETTINGS, advanced_settings: ADVANCED_SETTINGS }
}

fn management_url(node: &RabbitMq) -> String {
    node.management_url().expect("the node was started")
}

/// Registers the node `name` with `port` in the epmd on port `epmd`: ALIVE2_REQ, and ALIVE2_RESP or
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
    let mut response = [0; 2];
    stream.read_exact(&mut response).await.expect("a response");
    assert!(
        [118, 121].contains(&response[0]) && response[1] == 0,
        "epmd refused {name}: {response:?}"
    );
    stream
}
