-- Takes records out of windows again: repeats of calls from beyond the windows' memory. See count.lua for the records.
--
-- ARGV[1] is JSON: keys, hexes (the hash of the record to take out of each), widths (of the records in each).

local sub, pack, unpack_at = string.sub, struct.pack, struct.unpack
local RECORD, HASH_AT, HASH = 30, 6, 8
local MODULUS = 2 ^ 50

local function binary(hex)
  return (string.gsub(hex, '%x%x', function(digits)
    return string.char(tonumber(digits, 16))
  end))
end

local input = cjson.decode(ARGV[1])
for i, key in ipairs(input.keys) do
  local value, hash, width = redis.call('GET', key) or '', binary(input.hexes[i]), input.widths[i]
  local held, gone = {}, nil
  for at = 1, #value, width do
    local record = sub(value, at, at + width - 1)
    if sub(record, HASH_AT + 1, HASH_AT + HASH) == hash then
      gone = record
    elseif gone and width == RECORD and sub(record, 15, 17) == sub(gone, 15, 17) then
      -- Later totals of the currency are those without the payment.
      local total = (unpack_at('<I7', record, 24) - unpack_at('<I6', gone, 18)) % MODULUS
      held[#held + 1] = sub(record, 1, 23) .. pack('<I7', total)
    else
      held[#held + 1] = record
    end
  end
  if gone and #held == 0 then
    redis.call('DEL', key)
  elseif gone then
    redis.call('SET', key, table.concat(held), 'KEEPTTL')
  end
end
return redis.status_reply('OK')
