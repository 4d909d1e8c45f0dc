"""Messages of the contract as the data of the domain, and back."""
