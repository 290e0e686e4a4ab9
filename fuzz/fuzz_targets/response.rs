//! Responses of Customer.io: two bytes for the status, one for the jobs of the call, then the body.
#![no_main]

use customerio_sync::customerio::property::every_job_gets_an_outcome;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let [high, low, jobs, body @ ..] = data {
        let status = 100 + u16::from_be_bytes([*high, *low]) % 900;
        every_job_gets_an_outcome(status, usize::from(*jobs) + 1, body);
    }
});
