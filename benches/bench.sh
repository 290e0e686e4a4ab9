# The measuring part of `./dev bench`, which reads this file. Everything runs on this machine.
# shellcheck shell=bash

bench() { # [EVENTS|operators]
  local events=${1:-100000}
  if [[ $events == operators ]]; then bench_operators; return; fi
  [[ $events =~ ^[0-9]+$ ]] || die 'usage: ./dev bench [EVENTS|operators]'
  build_and_use_playground bench release
  start_simulator_and_service
  say "Publishing $events events as fast as they are confirmed"
  local before; before=$(bench_counters)
  "$PROGRAM" publish --sample "$events" 2>/dev/null
  wait_until 600 jobs_are "$events" "status = 'completed'"
  local rate; rate=$(bench_report "$events" "$before")
  bench_latency $((rate / 5))
}

# Prints the latency at RATE events per second.
bench_latency() { # RATE
  stop_programs
  start_simulator_and_service
  say "Publishing $1 events per second for 20 seconds"
  "$PROGRAM" publish --sample $(($1 * 20)) --rate "$1" 2>/dev/null
  wait_until 120 jobs_are $(($1 * 20)) "status = 'completed'"
  psql_at "$DATABASE_URL" -At -F ' ' -c "
    SELECT format('  %-52s %s ms', 'event to accepted at $1 per second, ' || name,
        round((extract(epoch FROM latency) * 1000)::numeric, 1))
    FROM (
        SELECT percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (
                ORDER BY a.started_at + a.duration_ms * interval '1 ms' - j.occurred_at
            ) AS percentiles
        FROM sync_attempts a
        JOIN signup_customerio_sync_jobs j ON j.id = a.job_id
    ) AS measured, unnest(ARRAY['p50', 'p99'], percentiles) AS row (name, latency)"
}

# Prints the CPU ticks of the service, and the transactions and the WAL position of the database.
bench_counters() {
  local ticks; ticks=$(awk '{ print $14 + $15 }' "/proc/$(<"$STATE/service.pid")/stat")
  # The statistics of a connection are published within a second after it becomes idle.
  sleep 1.2
  echo "$ticks $(psql_at "$DATABASE_URL" -At -F ' ' -c "
    SELECT xact_commit, pg_current_wal_lsn() - '0/0'::pg_lsn
    FROM pg_stat_database
    WHERE datname = current_database()")"
}

# Prints the table to standard error, and the jobs per second to standard output.
bench_report() { # EVENTS COUNTERS_BEFORE
  local seconds memory
  seconds=$(psql_at "$DATABASE_URL" -Atc "
    SELECT extract(epoch FROM max(completed_at) - min(occurred_at)) FROM signup_customerio_sync_jobs")
  memory=$(awk '/VmHWM/ { print $2 / 1024 }' "/proc/$(<"$STATE/service.pid")/status")
  echo "$1 $seconds $memory $(getconf CLK_TCK) $2 $(bench_counters)" | awk '{
    row = "  %-52s %s\n"
    printf row, "jobs per second, first publish to last settled", sprintf("%.0f", $1 / $2) > "/dev/stderr"
    printf row, "CPU time of the service", sprintf("%.0f us per job", ($8 - $5) / $4 / $1 * 1e6) > "/dev/stderr"
    printf row, "peak memory of the service", sprintf("%.1f MiB", $3) > "/dev/stderr"
    printf row, "PostgreSQL commits", sprintf("%.4f per job", ($9 - $6) / $1) > "/dev/stderr"
    printf row, "PostgreSQL WAL", sprintf("%.0f bytes per job", ($10 - $7) / $1) > "/dev/stderr"
    printf "%d\n", $1 / $2
  }'
}

# Measures how long operators wait for the API, with a million jobs of which a hundred thousand have failed.
bench_operators() {
  build_and_use_playground bench release
  start_simulator_and_service
  say 'Inserting a million jobs'
  sed 's/:jobs/1000000/' tests/scale.sql | psql_at "$DATABASE_URL" -f -
  psql_at "$DATABASE_URL" -c 'VACUUM ANALYZE signups' -c 'VACUUM ANALYZE signup_customerio_sync_jobs'
  say 'Milliseconds until the response, median of 9'
  local path
  for path in sync-failures 'sync-failures?offset=90000' 'sync-failures?errorType=network' \
    'sync-failures?syncPhase=enriched&errorType=other' 'sync-failures?search=person777770@' \
    'sync-failures?search=Last7' 'sync-failures?search=example.com' 'sync-failures?search=zz' \
    'sync-failures?signature=Customer.io+answered+501' failure-groups stats; do
    printf '  %-52s %s\n' "$path" "$(median_milliseconds "/api/v1/signups/customerio/$path")"
  done
}

median_milliseconds() { # PATH
  local _
  for _ in 1 2 3 4 5 6 7 8 9; do
    curl -fsS -o /dev/null -w '%{time_total}\n' "http://$SERVICE$1"
  done | sort -n | awk 'NR == 5 { printf "%.1f\n", $1 * 1000 }'
}
