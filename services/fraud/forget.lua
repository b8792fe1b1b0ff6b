-- Takes records out of windows again: repeats of calls from beyond the windows' memory. See layout.lua for how windows
-- lie here.
--
-- ARGV[1] is JSON: the families. For each of them ARGV has two more texts: the fields of windows, 8 bytes a piece, and
-- the hash of the record that is to be taken out of each.

local function currency_of(record)
  return sub(record, CURRENCY_AT + 1, CURRENCY_AT + 3)
end

-- The records of `value` without the one that has the hash; nil when there is none.
local function without(value, hash, width)
  local held, gone = {}, nil
  for at = 1, #value, width do
    local record = sub(value, at, at + width - 1)
    if sub(record, HASH_AT + 1, HASH_AT + HASH) == hash then
      gone = record
    elseif gone and width == RECORD and currency_of(record) == currency_of(gone) then
      -- Later totals of the currency are those without the payment.
      local total = (unpack_at('<I7', record, TOTAL_AT + 1) - unpack_at('<I6', gone, AMOUNT_AT + 1)) % MODULUS
      held[#held + 1] = sub(record, 1, HEAD) .. pack('<I7', total)
    else
      held[#held + 1] = record
    end
  end
  return gone and table.concat(held)
end

local function forget(family, shelf, field, value, hash)
  local key = value == '' and own_key(family, field)
  local held = without(key and call('GET', key) or value, hash, family.width)
  if not held then
    return
  elseif held == '' then
    call('HDEL', shelf, field)
  elseif not key then
    call('HSET', shelf, field, held)
  end
  if key and held == '' then
    call('DEL', key)
  elseif key then
    call('SET', key, held, 'KEEPTTL')
  end
end

for number, family in ipairs(cjson.decode(ARGV[1])) do
  local fields, hashes = cut(ARGV[number * 2], HASH), cut(ARGV[number * 2 + 1], HASH)
  local newer, older = shelves(family)
  -- One after the other: a window may be named more than once.
  for place, field in ipairs(fields) do
    local values, is_old = read_both(newer, older, { field })
    if values[1] then
      forget(family, is_old[1] and older or newer, field, values[1], hashes[place])
    end
  end
end
return redis.status_reply('OK')
