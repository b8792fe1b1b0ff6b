-- What people have done with a saga that waits for one: who, why and when. Kept with the saga, for ever.
ALTER TABLE sagas ADD COLUMN interventions json NOT NULL DEFAULT '[]';

COMMENT ON COLUMN sagas.interventions IS 'what people have done with it while it was PARKED, oldest first';
