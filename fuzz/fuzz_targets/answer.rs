//! Answers of Customer.io: two bytes of status, one of jobs in the call, then the body.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let [high, low, jobs, body @ ..] = data {
        let status = 100 + u16::from_be_bytes([*high, *low]) % 900;
        customerio_sync::customerio::property::no_answer_loses_a_job(status,
        usize::from(*jobs) + 1, body);
    }
});
