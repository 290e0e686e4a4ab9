//! A customer in a response: whole, or masked.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    admin::http::mask::{mask, mask_address, mask_identifier},
    event::Customer,
};

/// The person who signed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CustomerView {
    pub(crate) id: Option<String>,
    pub(crate) email: Option<String>,
    pub(crate) first_name: Option<String>,
    pub(crate) last_name: Option<String>,
}

impl From<Customer> for CustomerView {
    fn from(customer: Customer) -> Self {
        let Customer { id, email, first_name, last_name, .. } = customer;
        Self { id, email, first_name, last_name }
    }
}

/// The person who signed up, with all fields.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RevealedCustomer {
    #[serde(flatten)]
    customer: CustomerView,
    phone: Option<String>,
    state: Option<String>,
}

impl From<Customer> for RevealedCustomer {
    fn from(customer: Customer) -> Self {
        let (phone, state) = (customer.phone.clone(), customer.state.clone());
        Self { customer: customer.into(), phone, state }
    }
}

impl CustomerView {
    /// Masks the address and the names if `masked`.
    pub(crate) fn masked_if(self, masked: bool) -> Self {
        if !masked {
            return self;
        }
        Self {
            id: self.id.as_deref().map(mask_identifier),
            email: self.email.as_deref().map(mask_address),
            first_name: self.first_name.as_deref().map(mask),
            last_name: self.last_name.as_deref().map(mask),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_customer_shows_only_first_letters() {
        let customer = CustomerView {
            id: Some("c-991".to_owned()),
            email: Some("ann.lee@example.com".to_owned()),
            first_name: Some("Änn".to_owned()),
            last_name: None,
        };
        assert_eq!(customer.clone().masked_if(false), customer);
        let masked = customer.masked_if(true);
        assert_eq!(masked.email.as_deref(), Some("a***@e***.com"));
        assert_eq!(masked.first_name.as_deref(), Some("Ä***"));
        assert_eq!((masked.id.as_deref(), masked.last_name), (Some("c-991"), None));
    }
}
