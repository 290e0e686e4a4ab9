//! Combinations of values that cannot work are refused with the fix.

use crate::{
    helm::{Helm, chart, values_file},
    tools::run,
};

/// Values, and the message about them.
const COMBINATIONS: [(&str, &str); 15] = [
    (
        "monitoring: {serviceMonitor: {enabled: true}, podMonitor: {enabled: true}}",
        "monitoring.serviceMonitor and monitoring.podMonitor are both enabled, and every replica \
         would be scraped twice. Disable one of them.",
    ),
    (
        "config: {database: {migrate: true}}",
        "config.database.migrate is true and migrations.mode is \"hook\", and both would apply \
         the migrations. Remove config.database.migrate, or set migrations.mode to \"none\".",
    ),
    (
        "migrations: {mode: none, databaseUrl: {existingSecret: owner, key: uri}}",
        "migrations.databaseUrl is set and migrations.mode is \"none\", so nothing would use it. \
         Set migrations.mode to \"hook\" or \"job\".",
    ),
    (
        "migrations: {databaseUrl: {existingSecret: owner}}",
        "migrations.databaseUrl.existingSecret is set without a key. Set \
         migrations.databaseUrl.key to the key in the Secret \"owner\".",
    ),
    (
        "doctor: {managementApi: {existingSecret: monitoring}}",
        "doctor.managementApi.existingSecret is set without a key. Set doctor.managementApi.key \
         to the key in the Secret \"monitoring\".",
    ),
    (
        "tls: {ca: {existingSecret: a, existingConfigMap: b}}",
        "tls.ca.existingSecret and tls.ca.existingConfigMap are both set. Set one of them.",
    ),
    (
        "autoscaling: {mode: hpa, minReplicas: 5, maxReplicas: 4}",
        "autoscaling.minReplicas is 5 and autoscaling.maxReplicas is 4. Set minReplicas to at \
         most maxReplicas.",
    ),
    (
        "autoscaling: {mode: keda}\nconfig: {customerio: {requests_per_second: 10}}",
        "autoscaling.maxReplicas is 4, but config.customerio.requests_per_second of 10 keeps at \
         most 2 replicas busy with 4 batches in flight each. Lower maxReplicas, or raise \
         requests_per_second if Customer.io allows it.",
    ),
    (
        "autoscaling: {mode: hpa}\nresources: {requests: {cpu: null}}",
        "autoscaling.mode is \"hpa\", which scales on the CPU utilization relative to \
         resources.requests.cpu, and that is not set. Set resources.requests.cpu.",
    ),
    (
        "ingress: {enabled: true}",
        "ingress.enabled is true without a host. Add an entry such as {host: \
         customerio-sync.example.com, paths: [{path: /, pathType: Prefix}]} to ingress.hosts.",
    ),
    (
        "httpRoute: {enabled: true}",
        "httpRoute.enabled is true without a gateway. Add an entry such as {name: gateway, \
         namespace: gateways} to httpRoute.parentRefs.",
    ),
    (
        "config: {http: {addr: \"127.0.0.1:8080\"}}",
        "config.http.addr is \"127.0.0.1:8080\", which the kubelet and the Service cannot reach. \
         Set it to \"0.0.0.0:8080\", or to \"[::]:8080\" in an IPv6-only cluster.",
    ),
    (
        "networkPolicy: {enabled: true}\n\
         config: {telemetry: {otlp_endpoint: \"http://collector:4317\"}}",
        "config.telemetry.otlp_endpoint has port 4317, which networkPolicy does not permit. Set \
         networkPolicy.egress.otlp.ports to [4317].",
    ),
    (
        "extraEnv: [{name: HTTP_ADDR, value: \"[::]:9090\"}]",
        "extraEnv contains HTTP_ADDR, which the chart sets itself. Use config for settings, and \
         credentials and existingSecret for credentials.",
    ),
    (
        "migrations: {extraEnv: [{name: DATABASE_URL, value: x}]}",
        "extraEnv contains DATABASE_URL, which the chart sets itself.",
    ),
];

#[test]
fn combinations_that_cannot_work_are_refused_with_the_fix() {
    for (helm, (values, expected)) in
        Helm::ALL.into_iter().flat_map(|helm| COMBINATIONS.map(|combination| (helm, combination)))
    {
        let file = values_file(values);
        let mut command = helm.command();
        command.arg("template").arg("prod").arg(chart()).arg("--values").arg(file.path());
        let printed = run(&mut command);
        assert!(!printed.succeeded, "{values} is refused");
        // Helm 4 breaks its messages into lines.
        let message = printed.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(message.contains(expected), "{values}:\n{message}\nexpected:\n{expected}");
    }
}
