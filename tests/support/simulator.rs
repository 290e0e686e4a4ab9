//! The simulator of Customer.io of a world.

use serde_json::Value;

use super::World;

impl World {
    pub(crate) async fn sim(&self, path: &str) -> Value {
        serde_json::from_str(&self.sim_text(path).await).expect("JSON")
    }

    pub(crate) async fn sim_text(&self, path: &str) -> String {
        let url = format!("http://{}/_sim/{path}", self.simulator.addr());
        let response = self.http.get(url).send().await.expect("the simulator answers");
        response.text().await.expect("a body")
    }

    /// Sets the behaviour that Customer.io does not document.
    pub(crate) async fn set_simulator(&self, settings: Value) {
        let url = format!("http://{}/_sim/settings", self.simulator.addr());
        let request = self.http.put(url).header("content-type", "application/json");
        let response = request.body(settings.to_string()).send().await.expect("it answers");
        assert!(response.status().is_success(), "{settings}: {}", response.status());
    }

    pub(crate) async fn fault(&self, fault: Value) {
        let url = format!("http://{}/_sim/faults", self.simulator.addr());
        let request =
            self.http.post(url).header("content-type", "application/json").body(fault.to_string());
        let response = request.send().await.expect("the simulator answers");
        assert!(response.status().is_success(), "{fault}: {}", response.status());
    }

    pub(crate) async fn clear_faults(&self) {
        let url = format!("http://{}/_sim/faults", self.simulator.addr());
        self.http.delete(url).send().await.expect("the simulator answers");
    }

    pub(crate) async fn calls(&self) -> Vec<Value> {
        self.sim("calls").await.as_array().expect("a list").clone()
    }

    /// The times of the calls, in order.
    pub(crate) async fn call_times(&self) -> Vec<chrono::DateTime<chrono::Utc>> {
        let at = |call: &Value| call["at"].as_str()?.parse().ok();
        let mut times: Vec<_> =
            self.calls().await.iter().map(|call| at(call).expect("a time")).collect();
        times.sort_unstable();
        times
    }

    pub(crate) async fn events(&self) -> Vec<Value> {
        self.sim("events").await.as_array().expect("a list").clone()
    }
}
