//! The values of metric labels.

use crate::runtime::text_enum::text_enum;

text_enum! {
    /// The HTTP status of a call.
    CallStatus {
        /// No complete response.
        NoResponse = "none",
        /// 200.
        Ok = "200",
        /// 207: some operations were refused.
        MultiStatus = "207",
        /// Any other 2xx.
        OtherSuccess = "2xx",
        /// Any 3xx.
        Redirection = "3xx",
        /// 400.
        BadRequest = "400",
        /// 401.
        Unauthorized = "401",
        /// 403.
        Forbidden = "403",
        /// 408.
        RequestTimeout = "408",
        /// 413.
        TooLarge = "413",
        /// 429.
        TooManyRequests = "429",
        /// Any other 4xx.
        OtherClientError = "4xx",
        /// Any 5xx.
        ServerError = "5xx",
        /// Any other status.
        Other = "other",
    }
}

impl CallStatus {
    pub(super) const fn of(status: Option<u16>) -> Self {
        match status {
            None => Self::NoResponse,
            Some(200) => Self::Ok,
            Some(207) => Self::MultiStatus,
            Some(200..=299) => Self::OtherSuccess,
            Some(300..=399) => Self::Redirection,
            Some(400) => Self::BadRequest,
            Some(401) => Self::Unauthorized,
            Some(403) => Self::Forbidden,
            Some(408) => Self::RequestTimeout,
            Some(413) => Self::TooLarge,
            Some(429) => Self::TooManyRequests,
            Some(400..=499) => Self::OtherClientError,
            Some(500..=599) => Self::ServerError,
            Some(_) => Self::Other,
        }
    }
}

text_enum! {
    /// The replicas that a call rate is for.
    CallRateOf {
        /// This replica, as its lease grants it now.
        Share = "share",
        /// All replicas together, as configured.
        All = "all",
    }
}
