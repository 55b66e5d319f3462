-- What Meta has told last of an account or a template: webhooks are repeated, in no promised order.
-- migrate:up
CREATE TABLE notices (
  waba_id text NOT NULL,
  subject text NOT NULL,
  at_s bigint NOT NULL,
  event text NOT NULL,
  PRIMARY KEY (waba_id, subject)
);

-- migrate:down
DROP TABLE notices;
