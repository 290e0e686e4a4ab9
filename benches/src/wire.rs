//! What programs send and receive, as the kernel counts it per connection.

/// Bytes in both directions on the connections to a port, without those of the process `own`, from
/// the output of `ss -tinpHO` (<https://man7.org/linux/man-pages/man8/ss.8.html>).
pub(crate) fn bytes_of_others(sockets: &str, own: u32, port: u16) -> f64 {
    let (port, own) = (format!(":{port}"), format!("pid={own},"));
    let connections = sockets.lines().filter(|line| {
        let peer = line.split_whitespace().nth(4);
        !line.contains(&own) && peer.is_some_and(|peer| peer.ends_with(&port))
    });
    let count = |field: &str| -> f64 {
        let value = field.strip_prefix("bytes_sent:");
        let value = value.or_else(|| field.strip_prefix("bytes_received:"));
        value.and_then(|value| value.parse().ok()).unwrap_or(0.0)
    };
    connections.flat_map(str::split_whitespace).map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_of_the_other_processes_are_summed() {
        let line = |port, pid| {
            format!(
                "ESTAB 0 0 127.0.0.1:40000 127.0.0.1:{port} users:((\"x\",pid={pid},fd=9)) cubic \
                 bytes_sent:100 bytes_acked:101 bytes_received:20 segs_out:4\n"
            )
        };
        let sockets = line(5672, 7) + &line(5672, 77) + &line(5672, 8) + &line(5432, 7);
        assert_eq!(bytes_of_others(&sockets, 7, 5672), 240.0);
        assert_eq!(bytes_of_others(&sockets, 1, 5672), 360.0);
        assert_eq!(bytes_of_others(&sockets, 1, 25672), 0.0);
    }
}
