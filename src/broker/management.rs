//! Checks of RabbitMQ over its management API (<https://www.rabbitmq.com/docs/management>), which
//! AMQP has no requests for. They change nothing.

use std::{sync::LazyLock, time::Duration};

use regex::Regex;
use reqwest::Url;
use secrecy::ExposeSecret;
use serde_json::Value;

use super::{
    Config, Topology, WorkQueue, address::vhost, diagnose::declare_fix,
    topology::UNLIMITED_DELIVERIES,
};
use crate::runtime::{certificate::tls_fix, check::CheckResult, tls};

/// Maximum duration of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum duration of all requests together.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum bytes that are read of a response.
const RESPONSE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// `consumer_timeout` unless it is configured
/// (<https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>).
const CONSUMER_TIMEOUT_DEFAULT: Duration = Duration::from_mins(30);
/// RabbitMQ checks for timeouts once per minute.
const CONSUMER_TIMEOUT_MARGIN: Duration = Duration::from_mins(1);
/// Keys of a policy that limit a queue: the smaller of policy and argument applies
/// (<https://www.rabbitmq.com/docs/policies#combining-policy-definitions>).
const LIMITS: [&str; 5] =
    ["message-ttl", "expires", "delivery-limit", "max-length", "max-length-bytes"];
/// Keys of a policy that apply to a queue without an argument of that name.
const BEHAVIOURS: [&str; 4] =
    ["overflow", "dead-letter-exchange", "dead-letter-routing-key", "dead-letter-strategy"];
/// Limits that have no effect until the queue is long.
const LENGTHS: [&str; 2] = ["max-length", "max-length-bytes"];

/// The entry in the configuration that RabbitMQ prints.
static CONSUMER_TIMEOUT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\{consumer_timeout,\s*(\d+|undefined)\}").expect("the pattern is valid")
});

/// An answer of the management API.
enum Answer {
    Found(Vec<u8>),
    /// The object or the endpoint does not exist.
    Missing,
    /// The user lacks the tag that the endpoint requires.
    Refused,
}

/// Why the API could not be asked.
struct Unusable {
    detail: String,
    fix: String,
}

/// Checks arguments, bindings, policies, `consumer_timeout` against `hold` (`sync.hold`), and
/// alarms, if `broker.management_api` is set.
pub async fn check(
    config: &Config,
    tls: &tls::Config,
    topology: &Topology,
    hold: Duration,
) -> Vec<CheckResult> {
    if config.management_api.expose_secret().is_empty() {
        return Vec::new();
    }
    let checking = async {
        let api = Management::new(config, tls)?;
        api.check(topology, topology.declares(), hold).await
    };
    let checked = tokio::time::timeout(CHECK_TIMEOUT, checking).await;
    let unusable = match checked {
        Ok(Ok(results)) => return results,
        Ok(Err(unusable)) => unusable,
        Err(_) => Unusable::unreachable(format!("no answer within {CHECK_TIMEOUT:?}")),
    };
    vec![CheckResult::failed("management", unusable.detail, unusable.fix)]
}

impl Unusable {
    fn unreachable(detail: String) -> Self {
        if let Some(fix) = tls_fix(&detail, "the management API", "tls.ca_file", None) {
            return Self { detail, fix };
        }
        let fix = "start RabbitMQ with the plugin rabbitmq_management (rabbitmq-plugins enable \
            rabbitmq_management), or correct the address in broker.management_api";
        Self { detail, fix: fix.to_owned() }
    }

    fn certificates(error: &dyn std::error::Error) -> Self {
        let fix = "correct tls.ca_file".to_owned();
        Self { detail: error.to_string(), fix }
    }

    fn malformed() -> Self {
        let fix = "set broker.management_api to an URL such as http://user:password@host:15672";
        Self { detail: "broker.management_api is not a URL".to_owned(), fix: fix.to_owned() }
    }
}

struct Management {
    http: reqwest::Client,
    /// With user and password.
    base: Url,
    vhost: String,
}

/// A queue as the API describes it, and as the topology does.
struct ComparedQueue {
    name: String,
    expected: Value,
    actual: Value,
}

impl Management {
    fn new(config: &Config, tls: &tls::Config) -> Result<Self, Unusable> {
        let url = config.management_api.expose_secret().parse::<Url>();
        let base = url.map_err(|_| Unusable::malformed())?;
        if base.cannot_be_a_base() {
            return Err(Unusable::malformed());
        }
        let authorities = tls.authorities().map_err(|error| Unusable::certificates(&error))?;
        let authorities = reqwest::Certificate::from_pem_bundle(&authorities.unwrap_or_default())
            .map_err(|error| Unusable::certificates(&error))?;
        let http = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_merge(authorities)
            .build()
            .map_err(|error| Unusable::unreachable(describe(&error)))?;
        let vhost = vhost(config).unwrap_or_else(|_| "/".to_owned());
        Ok(Self { http, base, vhost })
    }

    async fn check(
        &self,
        topology: &Topology,
        declares: bool,
        hold: Duration,
    ) -> Result<Vec<CheckResult>, Unusable> {
        let version = self.version().await?;
        let mut results = vec![CheckResult::passed("management", format!("RabbitMQ {version}"))];
        let definitions = topology.definitions(&self.vhost);
        let queues = self.queues(&definitions).await?;
        results.push(check_arguments(&queues));
        results.push(self.check_bindings(&definitions, declares).await?);
        results.extend(check_policies(&queues, &self.vhost));
        results.push(self.check_consumer_timeout(&queues, hold).await?);
        results.push(self.check_alarms().await?);
        Ok(results)
    }

    async fn version(&self) -> Result<String, Unusable> {
        let user = self.base.username();
        match self.get(&["overview"]).await? {
            Answer::Found(body) => {
                let overview = parse(&body)?;
                Ok(overview["rabbitmq_version"].as_str().unwrap_or("(unknown)").to_owned())
            }
            Answer::Missing => Err(Unusable::unreachable("this is no management API".to_owned())),
            Answer::Refused => Err(Unusable {
                detail: format!("the user {user} or its password is refused"),
                fix: format!(
                    "correct user and password in broker.management_api, and run rabbitmqctl \
                     set_user_tags '{user}' monitoring"
                ),
            }),
        }
    }

    /// The queues of the topology that exist.
    async fn queues(&self, definitions: &Value) -> Result<Vec<ComparedQueue>, Unusable> {
        let mut queues = Vec::new();
        for expected in definitions["queues"].as_array().into_iter().flatten() {
            let name = expected["name"].as_str().unwrap_or_default();
            if let Answer::Found(body) = self.get(&["queues", &self.vhost, name]).await? {
                let (name, expected) = (name.to_owned(), expected.clone());
                queues.push(ComparedQueue { name, expected, actual: parse(&body)? });
            }
        }
        Ok(queues)
    }

    async fn check_bindings(
        &self,
        definitions: &Value,
        declares: bool,
    ) -> Result<CheckResult, Unusable> {
        let mut missing = Vec::new();
        for expected in definitions["bindings"].as_array().into_iter().flatten() {
            let queue = expected["destination"].as_str().unwrap_or_default();
            let path = ["queues", &self.vhost, queue, "bindings"];
            let Answer::Found(body) = self.get(&path).await? else { continue };
            let is_same = |found: &Value| {
                ["source", "routing_key"].iter().all(|key| found[key] == expected[key])
            };
            if !parse(&body)?.as_array().into_iter().flatten().any(is_same) {
                let (source, key) = (&expected["source"], &expected["routing_key"]);
                missing.push(format!("{queue} is not bound to {source} with the key {key}"));
            }
        }
        if missing.is_empty() {
            return Ok(CheckResult::passed("bindings", "every queue is bound"));
        }
        Ok(CheckResult::failed("bindings", missing.join(", "), declare_fix(declares)))
    }

    /// Compares the time after which RabbitMQ closes the channel of a consumer that does not
    /// acknowledge with the time for which this service may not.
    async fn check_consumer_timeout(
        &self,
        queues: &[ComparedQueue],
        hold: Duration,
    ) -> Result<CheckResult, Unusable> {
        let is_work_queue = |queue: &&ComparedQueue| {
            WorkQueue::ALL.iter().any(|work_queue| work_queue.name() == queue.name)
        };
        let of_policies = queues
            .iter()
            .filter(is_work_queue)
            .filter_map(|queue| queue.policies()["consumer-timeout"].as_u64())
            .min();
        if let Some(timeout) = of_policies {
            return Ok(compare_consumer_timeout(Duration::from_millis(timeout), hold));
        }
        // Answered since RabbitMQ 3.11, to administrators.
        if let Answer::Found(body) = self.get(&["config", "effective"]).await?
            && let Some(found) = CONSUMER_TIMEOUT.captures(&String::from_utf8_lossy(&body))
        {
            let text = found.get(1).map_or("", |timeout| timeout.as_str());
            return Ok(match text.parse() {
                Ok(timeout) => compare_consumer_timeout(Duration::from_millis(timeout), hold),
                Err(_) => CheckResult::passed("consumer_timeout", "none"),
            });
        }
        let needed = (hold + CONSUMER_TIMEOUT_MARGIN).as_millis();
        let detail = if hold + CONSUMER_TIMEOUT_MARGIN > CONSUMER_TIMEOUT_DEFAULT {
            format!("its default (30m) is shorter than sync.hold ({hold:?}) allows")
        } else {
            "this version of RabbitMQ, or this user, does not show it over HTTP".to_owned()
        };
        let fix = format!(
            "check that rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).' prints \
             more than {needed}; raise consumer_timeout in rabbitmq.conf, or lower sync.hold"
        );
        Ok(CheckResult::warning("consumer_timeout", detail, fix))
    }

    async fn check_alarms(&self) -> Result<CheckResult, Unusable> {
        let Answer::Found(body) = self.get(&["nodes"]).await? else {
            let user = self.base.username();
            return Ok(CheckResult::warning(
                "alarms",
                format!("the user {user} may not read the state of the nodes"),
                format!("rabbitmqctl set_user_tags '{user}' monitoring"),
            ));
        };
        let mut alarms = Vec::new();
        for node in parse(&body)?.as_array().into_iter().flatten() {
            let name = node["name"].as_str().unwrap_or_default();
            for (key, alarm) in [("mem_alarm", "memory"), ("disk_free_alarm", "disk")] {
                if node[key] == true {
                    alarms.push(format!("{name} has a {alarm} alarm"));
                }
            }
        }
        if alarms.is_empty() {
            return Ok(CheckResult::passed("alarms", "none"));
        }
        Ok(CheckResult::failed(
            "alarms",
            format!("{}: RabbitMQ blocks every publisher", alarms.join(", ")),
            "free memory or disk space of the node, or raise vm_memory_high_watermark or lower \
                disk_free_limit; rabbitmq-diagnostics alarms lists alarms",
        ))
    }

    async fn get(&self, path: &[&str]) -> Result<Answer, Unusable> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => {
                segments.pop_if_empty().push("api").extend(path);
            }
            Err(()) => return Err(Unusable::malformed()),
        }
        let failed = |error: reqwest::Error| Unusable::unreachable(describe(&error));
        // The client takes user and password out of the URL.
        let mut response = self.http.get(url).send().await.map_err(failed)?;
        match response.status().as_u16() {
            200 => {}
            404 => return Ok(Answer::Missing),
            401 | 403 => return Ok(Answer::Refused),
            status => return Err(Unusable::unreachable(format!("the answer is {status}"))),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > RESPONSE_BYTES_MAX {
                return Err(Unusable::unreachable("the answer is too long".to_owned()));
            }
        }
        Ok(Answer::Found(body))
    }
}

impl ComparedQueue {
    /// What policies and operator policies define for it, merged.
    fn policies(&self) -> &Value {
        &self.actual["effective_policy_definition"]
    }

    /// The argument that `key` of a policy competes with.
    fn argument(&self, key: &str) -> &Value {
        &self.expected["arguments"][format!("x-{key}")]
    }
}

fn parse(body: &[u8]) -> Result<Value, Unusable> {
    serde_json::from_slice(body).map_err(|_| Unusable::unreachable("the answer is no JSON".into()))
}

/// The error with its causes, without the URL, which may contain the password.
fn describe(error: &reqwest::Error) -> String {
    let mut text = "no answer".to_owned();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn check_arguments(queues: &[ComparedQueue]) -> CheckResult {
    let different: Vec<_> = queues
        .iter()
        .filter(|queue| queue.actual["arguments"] != queue.expected["arguments"])
        .map(|queue| {
            let (actual, expected) = (&queue.actual["arguments"], &queue.expected["arguments"]);
            format!("{} has {actual}, expected {expected}", queue.name)
        })
        .collect();
    if different.is_empty() {
        return CheckResult::passed("arguments", format!("{} queues as declared", queues.len()));
    }
    CheckResult::failed(
        "arguments",
        different.join("; "),
        "set topology.delivery_limit and retry.delays to what the queues have, or delete these \
            queues when they are empty and run `customerio-sync topology`",
    )
}

fn check_policies(queues: &[ComparedQueue], vhost: &str) -> Vec<CheckResult> {
    let results: Vec<_> = queues.iter().filter_map(|queue| check_policy(queue, vhost)).collect();
    if results.is_empty() {
        return vec![CheckResult::passed("policies", "none changes a queue")];
    }
    results
}

fn check_policy(queue: &ComparedQueue, vhost: &str) -> Option<CheckResult> {
    let policies = queue.policies();
    let limits = |key: &&&str| {
        let Some(limit) = policies[**key].as_i64() else { return false };
        queue.argument(key).as_i64().is_none_or(|argument| limit < argument)
            // A limit that is never reached is as good as none.
            && !(**key == "delivery-limit" && limit >= UNLIMITED_DELIVERIES)
    };
    let applies = |key: &&&str| !policies[**key].is_null() && queue.argument(key).is_null();
    let mut keys: Vec<_> = LIMITS.iter().filter(limits).collect();
    let is_harmful = keys.iter().any(|key| !LENGTHS.contains(key));
    keys.extend(BEHAVIOURS.iter().filter(applies));
    if keys.is_empty() {
        return None;
    }
    let set: Vec<_> = keys.iter().map(|key| format!("{key} = {}", policies[**key])).collect();
    let named = |key: &str| queue.actual[key].as_str().filter(|name| !name.is_empty());
    let clear = [("policy", "clear_policy"), ("operator_policy", "clear_operator_policy")];
    let commands: Vec<_> = clear
        .iter()
        .filter_map(|&(key, command)| {
            Some(format!("rabbitmqctl {command} -p '{vhost}' '{}'", named(key)?))
        })
        .collect();
    let names: Vec<_> = clear.iter().filter_map(|&(key, _)| named(key)).collect();
    let (name, commands) = (&queue.name, commands.join(" and "));
    let detail = format!("{} sets {} on {name}", names.join(" and "), set.join(", "));
    let fix = format!("change the pattern so that it leaves out {name}, or {commands}");
    Some(if is_harmful {
        CheckResult::failed("policies", detail, fix)
    } else {
        CheckResult::warning("policies", detail, fix)
    })
}

fn compare_consumer_timeout(timeout: Duration, hold: Duration) -> CheckResult {
    let seconds = |duration: Duration| duration.as_secs();
    let detail = format!("{}s, sync.hold is {}s", seconds(timeout), seconds(hold));
    if timeout >= hold + CONSUMER_TIMEOUT_MARGIN {
        return CheckResult::passed("consumer_timeout", detail);
    }
    let needed = (hold + CONSUMER_TIMEOUT_MARGIN).as_millis();
    let fix = format!(
        "set consumer_timeout = {needed} or more in rabbitmq.conf (or in the policy), or sync.hold \
         to {}s or less",
        seconds(timeout.saturating_sub(CONSUMER_TIMEOUT_MARGIN))
    );
    CheckResult::failed("consumer_timeout", detail, fix)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn queue(arguments: Value, policies: Value) -> ComparedQueue {
        ComparedQueue {
            name: "q".to_owned(),
            expected: json!({ "arguments": arguments }),
            actual: json!({
                "arguments": arguments,
                "effective_policy_definition": policies,
                "policy": "limits",
                "operator_policy": null,
            }),
        }
    }

    #[test]
    fn a_policy_that_limits_a_queue_is_reported_with_its_name() {
        let arguments = json!({ "x-message-ttl": 5000, "x-delivery-limit": 50 });
        let line = |policies: Value| {
            check_policy(&queue(arguments.clone(), policies), "/").map(|one| one.to_string())
        };
        assert_eq!(line(json!([])), None, "RabbitMQ's way to write an empty object");
        assert_eq!(line(json!({ "message-ttl": 5000, "queue-leader-locator": "balanced" })), None);
        assert_eq!(line(json!({ "delivery-limit": 100 })), None, "the smaller one applies");
        let harmful = line(json!({ "message-ttl": 4999 })).expect("reported");
        assert!(harmful.starts_with("FAIL  policies: limits sets message-ttl = 4999 on q"));
        assert!(harmful.ends_with("rabbitmqctl clear_policy -p '/' 'limits'"), "{harmful}");
        let length = line(json!({ "max-length": 10, "overflow": "drop-head" })).expect("reported");
        assert!(length.starts_with("warn  policies"), "{length}");
    }

    #[test]
    fn arguments_that_differ_are_reported() {
        let mut queue = queue(json!({ "x-delivery-limit": 50 }), json!({}));
        assert_eq!(check_arguments(&[]).fix, None);
        queue.actual["arguments"]["x-delivery-limit"] = 7.into();
        let line = check_arguments(&[queue]).to_string();
        assert!(line.contains(r#"q has {"x-delivery-limit":7}, expected"#), "{line}");
    }

    #[test]
    fn a_consumer_timeout_below_the_hold_is_reported() {
        let hold = Duration::from_mins(20);
        assert_eq!(compare_consumer_timeout(Duration::from_mins(21), hold).fix, None);
        let fix = compare_consumer_timeout(Duration::from_mins(20), hold).fix.expect("a fix");
        assert!(fix.starts_with("set consumer_timeout = 1260000 or more"), "{fix}");
        assert!(fix.ends_with("sync.hold to 1140s or less"), "{fix}");
        let printed = "[{rabbit,[{consumer_timeout,\n           900000}]}]";
        assert_eq!(&CONSUMER_TIMEOUT.captures(printed).expect("found")[1], "900000");
    }
}
