CREATE TABLE prices (
    sku text PRIMARY KEY,
    amount numeric(12, 2) NOT NULL
);
